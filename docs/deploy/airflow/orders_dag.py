"""Runs the pipeline `orders` every hour.

Airflow schedules and tries again; where the pipeline goes on is oxide_flow's business, so a try is the same
command each time. What an exit code means for Airflow:

    0       done
    1       failed, or stopped: try again, it resumes at the last checkpoint
    4       somebody else holds the pipeline or took it over: try again later
    2 3 70  usage or configuration, a damaged state, a bug: a person must look, no try helps
"""

import json
import os
import subprocess
from datetime import datetime, timedelta, timezone

from airflow.sdk import dag, task
from airflow.sdk.exceptions import AirflowException, AirflowFailException

PROGRAM = os.environ.get("OXIFLOW_PROGRAM", "/usr/local/bin/oxide_flow")
PROJECT = os.environ.get("OXIFLOW_PROJECT", "/etc/oxiflow")
# settings.stop_timeout (10 s), the last save while the store hangs (40 % of lease_ttl), a reserve.
STOP_SECONDS = 45
HOPELESS = (2, 3, 70)


def oxide_flow(*arguments, name):
    """Runs oxide_flow, and returns the data of the document that it prints."""
    environment = {**os.environ, "OXIFLOW_WORKER_NAME": name}
    process = subprocess.Popen(
        [PROGRAM, *arguments, "--project", PROJECT, "--json"],
        stdout=subprocess.PIPE,
        env=environment,
    )
    try:
        output, _ = process.communicate()
    except BaseException:
        # The task is ended or has taken too long: so is the run, in order, and its lease is released.
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        raise
    code = process.returncode
    if code in HOPELESS:
        raise AirflowFailException(f"oxide_flow ended with code {code}; see the log above")
    if code != 0:
        raise AirflowException(f"oxide_flow ended with code {code}; the next try resumes")
    return json.loads(output)["data"]


@dag(
    schedule="@hourly",
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    # A run takes what there is since the last one, so what was missed is not made up for.
    catchup=False,
    max_active_runs=1,
)
def orders():
    # `--wait` takes the pipeline over from a try whose machine is gone: longer than `lease_ttl`.
    # The tries are for outages: 2, 4 and 8 minutes later.
    @task(
        retries=3,
        retry_delay=timedelta(minutes=2),
        retry_exponential_backoff=True,
        execution_timeout=timedelta(hours=12),
    )
    def run(dag_run=None, ti=None):
        name = f"airflow:{ti.dag_id}.{ti.task_id}:{ti.try_number}"
        state = oxide_flow("run", "orders", "--wait", "5m", name=name)
        return {"run_id": state["run_id"], "records": state["records_processed"]}

    run()


dag_of_orders = orders()

if __name__ == "__main__":
    dag_of_orders.test()
