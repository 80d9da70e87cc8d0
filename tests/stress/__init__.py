"""Stress: the whole chain under kills, damaged files, full houses and lost databases, seeded and bounded.

``make stress`` runs every campaign; ``make stress ARGS="--seed 2 --only kills,files"`` some of them with other luck.
It is no part of ``make test``. docs/reliability.md has what it found.

    harness       seeds, time, failures, the summary
    commands      clapcur as child processes: started, killed, what they leave behind
    chain         a small corpus and experiment, and the chain of commands over it
    comparing     two homes against each other: artifacts, digests, records, catalog, MLflow
    mutating      bit flips, cuts, insertions and the like

    kills         SIGKILL and SIGTERM over the chain and over `improve`
    files         mutated audio of every format that libsndfile writes, through ingest and embed
    tables        mutated tables, shards and experiment files
    store         bit flips and cuts in every file of a finished chain
    homes         several processes on one home
    database      PostgreSQL stopped in the middle of the chain
"""
