"""``hydra/launcher=slurm``: submitit's launcher, with what it submits frozen, and without sacct.

Hydra finds launchers in modules of this name. Configurations are composed at submission and the code is copied
(cwd.sweeping.frozen), so an edit while jobs wait changes nothing. A run that fails is a failed job; a job that is
killed or runs out of time is queued again (cwd.sweeping.slurm) and goes on from its last checkpoint.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf, open_dict

from cwd.errors import UserError
from cwd.sweeping.frozen import freeze
from cwd.sweeping.slurm import batch_setup, queue
from cwd.sweeping.submissions import Submission, cell_of

POLL = 2.0  # seconds
GONE = 3  # times that squeue does not know a job before it counts as ended
OWN = ("submitit_folder", "max_num_timeout", "wait")  # settings that are not of a job
COMMON = ("name", "timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes")


class SlurmLauncher(Launcher):
    """Each run of a sweep is a job of one array.

    Args:
        settings: configs/hydra/launcher/slurm.yaml.
    """

    def __init__(self, **settings: Any) -> None:
        plain = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(settings), resolve=True))
        self.settings = {name: value for name, value in plain.items() if value is not None}

    def setup(self, *, hydra_context: Any, task_function: Any, config: DictConfig) -> None:
        """Hydra's."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submits, and unless ``wait`` is false, waits for all jobs.

        Raises:
            UserError: submitit is not installed, this is no SLURM cluster, or some GPUs would be left idle.
        """
        tasks, gpus = self.settings["tasks_per_node"], self.settings.get("gpus_per_node", 0)
        if isinstance(gpus, int) and gpus > tasks:
            raise UserError(
                f"hydra.launcher.gpus_per_node={gpus}: a process uses one GPU, and there would be {tasks} on each "
                f"node; add hydra.launcher.tasks_per_node={gpus}"
            )
        runs = Path(self.config.machine.runs)
        code = freeze(runs)
        load = self.hydra_context.config_loader.load_sweep_config
        configs = [load(self.config, list(overrides)) for overrides in job_overrides]
        numbers = list(range(initial_job_idx, initial_job_idx + len(configs)))
        states = [Singleton.get_state()] * len(configs)
        jobs = self._submit(code, configs, numbers, states)
        cells = {job.job_id: cell_of(list(words)) for job, words in zip(jobs, job_overrides, strict=True)}
        log = str(jobs[0].paths.stderr).replace(jobs[0].job_id, "%j")
        Submission("slurm", str(code), log, cells).write(runs)
        print(f"job {jobs[0].job_id.split('_')[0]}: {len(jobs)} runs submitted, logs {log}", flush=True)
        outcomes = self._wait(jobs) if self.settings.get("wait", True) else [None] * len(jobs)
        return [
            JobReturn(words, status=JobStatus.FAILED if error else JobStatus.COMPLETED, _return_value=error)
            for words, error in zip(job_overrides, outcomes, strict=True)
        ]

    def __call__(self, config: DictConfig, number: int, singletons: Any) -> None:
        """In the job: one run. Raises what the run raises, which SLURM is to know too."""
        import submitit

        Singleton.set_state(singletons)
        setup_globals()
        here = submitit.JobEnvironment()
        asked = self.settings["nodes"] * self.settings["tasks_per_node"]
        if here.num_tasks != asked:
            raise UserError(f"{asked} processes were asked for, and SLURM started {here.num_tasks}")
        if here.num_tasks > 1:
            submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = here.job_id, number
        done = run_job(
            self.task_function, config, "hydra.sweep.dir", "hydra.sweep.subdir", hydra_context=self.hydra_context
        )
        _ = done.return_value

    def checkpoint(self, *arguments: Any) -> Any:
        """For submitit, when the time limit comes before training has begun: the same call again."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, *arguments)

    def _submit(self, code: Path, *arguments: Any) -> list[Any]:
        try:
            from submitit.core.utils import FailedJobError
        except ModuleNotFoundError as error:
            raise UserError("hydra/launcher=slurm: submitit is not installed; pip install -e '.[cluster]'") from error
        if shutil.which("squeue") is None:
            raise UserError("hydra/launcher=slurm: squeue is not here; this is no machine of a SLURM cluster")
        try:
            return self._executor(code).map_array(self, *arguments)
        except FailedJobError as error:
            raise UserError(f"hydra/launcher=slurm: sbatch refused: {' '.join(str(error).split())}") from error
        except (NameError, ValueError) as error:  # how submitit refuses a setting
            raise UserError(f"hydra/launcher=slurm: {str(error).splitlines()[0]}") from error

    def _executor(self, code: Path) -> Any:
        import submitit

        if queue() is None:
            raise UserError("hydra/launcher=slurm: squeue gives no answer; is the cluster up?")
        executor = submitit.AutoExecutor(
            cluster="slurm",
            folder=self.settings["submitit_folder"],
            slurm_max_num_timeout=self.settings["max_num_timeout"],
        )
        given = {name: value for name, value in self.settings.items() if name not in OWN}
        given["setup"] = [*given.get("setup", []), *batch_setup(code)]
        executor.update_parameters(
            **{name if name in COMMON else f"slurm_{name}": value for name, value in given.items()}
        )
        return executor

    def _wait(self, jobs: Sequence[Any]) -> list[Exception | None]:
        """What went wrong with each job, None where nothing did, once all have ended."""
        missed = dict.fromkeys((job.job_id for job in jobs), 0)
        while any(count < GONE for count in missed.values()):
            time.sleep(POLL)
            known = queue()
            for job in jobs if known is not None else ():
                missed[job.job_id] = 0 if job.job_id in (known or ()) else missed[job.job_id] + 1
        return [_error_of(job) for job in jobs]


def _error_of(job: Any) -> Exception | None:
    """Why a job that has ended did not end well."""
    where = f"job {job.job_id}: its log is {job.paths.stderr}"
    if not job.paths.result_pickle.exists():
        return UserError(f"{where}; it was cancelled or killed, and left no result")
    error = job.exception()
    if error is None:
        return None
    trace = re.search(r"^-{10,}\n(.*?)\n-{10,}$", str(error), re.DOTALL | re.MULTILINE)  # beside advice where to look
    return UserError(f"{where}; {(trace[1] if trace else str(error)).strip().splitlines()[-1]}")
