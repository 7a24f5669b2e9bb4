"""Cleans the raw NOAA files into output/observations.csv, a batch at a time.

The pattern that makes the output exactly-once, here and in the other steps:

1. The cursor says how far the input was read and how long the output was then:
   "9250@316839" means 9250 input rows, 316839 output bytes.
2. At the start, cut the output back to the cursor's length: whatever follows it
   was written but never acknowledged, and is about to be written again.
3. For each batch: write, flush to disk, and only then report the new cursor.
"""

import collections
import csv
import itertools
import json
import os
import sys
import time
from datetime import datetime

OUTPUT = "output/observations.csv"
HEADER = b"city,measure,time,celsius\n"
BATCH_ROWS = 250
SCRATCHED = "{} is shorter than the cursor says; was it deleted? Start a fresh run."


def clean_normal(city, row):
    """One hourly normal: a local time with its offset, and degrees Fahrenheit."""
    date, fahrenheit = row
    hour = datetime.fromisoformat(date).strftime("%Y-%m-%dT%H")
    celsius = (plausible(fahrenheit, -80, 140) - 32) * 5 / 9
    return f"{city},normal,{hour},{celsius:.2f}\n"


def clean_measured(city, row):
    """One measured day: its high and low in degrees Celsius."""
    date, rain, high, low, _wind, weather = row
    day = datetime.strptime(date, "%Y/%m/%d").strftime("%Y-%m-%d")
    rain, high, low = plausible(rain, 0, 500), plausible(high, -60, 60), plausible(low, -60, 60)
    if low > high:
        raise ValueError("the low is above the high")
    if weather == "sun" and rain > 0:
        raise ValueError("called sunny, yet rain was measured")
    return f"{city},high,{day},{high:.2f}\n{city},low,{day},{low:.2f}\n"


def plausible(text, least, most):
    value = float(text)
    if not least <= value <= most:
        raise ValueError("a value nobody can have measured")
    return value


SOURCES = [
    ("data/seattle-temps.csv", "seattle", clean_normal),
    ("data/sf-temps.csv", "sf", clean_normal),
    ("data/seattle-weather.csv", "seattle", clean_measured),
]


def read_rows():
    """All rows of all sources in a fixed order, so that a row number is a place."""
    for path, city, clean in SOURCES:
        with open(path, newline="", encoding="ascii") as file:
            for row in itertools.islice(csv.reader(file), 1, None):
                yield city, clean, row


def open_output(length):
    """The output, cut back to `length` bytes; a fresh start overwrites an earlier run."""
    os.makedirs(os.path.dirname(OUTPUT), exist_ok=True)
    if length == 0:
        output = open(OUTPUT, "wb")
        output.write(HEADER)
        return output
    if not os.path.exists(OUTPUT) or os.path.getsize(OUTPUT) < length:
        sys.exit("extract: " + SCRATCHED.format(OUTPUT))
    output = open(OUTPUT, "r+b")
    output.truncate(length)
    output.seek(length)
    return output


def report(**progress):
    """One JSON line in one write(), which a pipe never tears or mixes with another."""
    line = json.dumps(progress) + "\n"
    os.write(int(os.environ["OXIFLOW_PROGRESS_FD"]), line.encode())


def main():
    cursor = os.environ.get("OXIFLOW_LAST_PROCESSED_ID") or "0@0"
    done, length = (int(part) for part in cursor.split("@"))
    pause = float(os.environ.get("BATCH_PAUSE_SECONDS", "0"))
    total = sum(1 for _ in read_rows())
    print(f"extract: starting after row {done} of {total}", flush=True)

    output = open_output(length)
    rows = itertools.islice(read_rows(), done, None)
    rejected = collections.Counter()
    while batch := list(itertools.islice(rows, BATCH_ROWS)):
        failed = 0
        for city, clean, row in batch:
            try:
                output.write(clean(city, row).encode())
            except ValueError as reason:
                failed += 1
                rejected[str(reason)] += 1

        # Commit first: what is reported is never done again.
        output.flush()
        os.fsync(output.fileno())
        done += len(batch)
        written, length = output.tell() - length, output.tell()
        report(records=len(batch) - failed, failed=failed, bytes=written, last_id=f"{done}@{length}", total=total)
        time.sleep(pause)

    for reason, count in rejected.items():
        print(f"extract: {count} rows rejected: {reason}")
    print(f"extract: done, {length} bytes in {OUTPUT}")


if __name__ == "__main__":
    main()
