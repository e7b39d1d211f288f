"""Measures what the project costs. ``python scripts/benchmark.py NAME [key=value ...]``

trainer    tokens/s of the trainer against a bare loop over the same model and data with torch.optim.AdamW(fused=True),
           the same loop compiled, and Hugging Face's Trainer;
           the options are train.py's
optimizers milliseconds of a step, cautious, against torch's own with plain decay, by turns; seconds of a first step;
           recompilations under a schedule: threads=2 repeats=15 markdown=FILE
memory     peak memory of a step beyond parameters, gradients and state, for every rule and mode:
           threads=2 rules=adamw,... modes=cautious,... markdown=FILE
peers      other libraries and styles: whether a step is the paper's, and its time beside ours:
           part=agreement|time rules=adamw,... threads=2 repeats=15 markdown=FILE
sweep      seconds of a sweep of 6 arms, against the same runs as processes one after another: seeds=4 threads=2
           scale=laptop data=data markdown=FILE
loss       peak memory and seconds of the language models' loss and its gradients, by chunks of tokens and all logits at
           once: batch=4 length=2048 classes=100864 width=64 precision=fp32|bf16 ways=chunks,whole threads=2
           markdown=FILE
data       text prepared a second by prepare_data.py, against the tokenizer library's own batch encoding of the same
           texts: processes=2 megabytes=48 repeats=3 tokenizer=bpe_fallback|FILE markdown=FILE
images     images/s of reading and augmenting JPEG files against timm's own loader:
           workers=2 repeats=5 recipe=deit folder=IMAGES
checkpoint seconds and bytes of checkpoints, as a part of whole runs of the ladder at the default interval, and of one;
           one of a larger state, with training waiting and in the background:
           scale=laptop sizes=111m,338m,986m,2b saves=20 megabytes=400 repeats=3 data=data markdown=FILE

markdown=FILE writes the tables into their section of FILE, such as docs/benchmarks.md.
"""

import sys
from importlib import import_module

from cwd.benchmarks import BENCHMARKS
from cwd.cli import door
from cwd.errors import UserError, nearest


def main() -> None:
    """See the module's docstring."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        return
    name, *arguments = sys.argv[1:]
    if name not in BENCHMARKS:
        raise UserError(f"{name}: no such benchmark{nearest(name, BENCHMARKS)}; allowed are {', '.join(BENCHMARKS)}")
    import_module(f"cwd.benchmarks.{name}").main(arguments)


if __name__ == "__main__":
    door(main)
