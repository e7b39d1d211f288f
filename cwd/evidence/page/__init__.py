"""One self-contained HTML page of everything that the runs say: the ledger, each artifact, the runs behind them."""
