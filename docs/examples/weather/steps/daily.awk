# Reduces the observations to one line a day: output/daily.csv.
#
# Exactly-once like steps/extract.py: the cursor "rows@bytes" holds the input rows that are
# finished and the length of the output then; cut back to it, commit a batch, report it.
# A batch ends only between two days, so no half-summed day has to survive a crash.
#
# Plain POSIX awk (mawk will do); `truncate` and `sync FILE` are from coreutils.

BEGIN {
    FS = ","
    output = "output/daily.csv"
    progress = "/dev/fd/" ENVIRON["OXIFLOW_PROGRESS_FD"]
    split(ENVIRON["OXIFLOW_LAST_PROCESSED_ID"], cursor, "@")
    finished = cursor[1] + 0
    bytes = cursor[2] + 0
    ("wc -l < " ARGV[1]) | getline lines
    total = lines - 1
    print "daily: starting after row " finished " of " total
    if (finished == 0) {
        run(": > " output)
        write("city,basis,date,low,mean,high\n")
    } else {
        # `truncate` would pad an output that is too short with zeros.
        run("test $(wc -c < " output ") -ge " bytes " && truncate -s " bytes " " output)
    }
}

NR - 1 <= finished { next }   # The header is line 1, so row n is line n + 1.

{
    # A day of normals has 24 hours; a measured day has its high and its low.
    key = $1 "," ($2 == "normal" ? "normal" : "measured") "," substr($3, 1, 10)
    if (key != day) {
        finish_day(NR - 2)
        day = key
        low = high = $4
        sum = count = 0
    }
    if ($4 < low) low = $4
    if ($4 > high) high = $4
    sum += $4
    count++
}

END {
    if (broken) exit 1
    finish_day(NR - 1)
    commit()
    print "daily: done, " bytes " bytes in " output
}

function finish_day(row) {
    if (day == "") return
    write(sprintf("%s,%.2f,%.2f,%.2f\n", day, low, sum / count, high))
    day = ""
    row_of_last_day = row
    if (++days % 50 == 0) commit()
}

function write(text) {
    printf "%s", text >> output
    unsaved += length(text)
}

function commit() {
    if (row_of_last_day <= finished) return   # Nothing new: killed after the last report.
    fflush(output)
    run("sync " output)
    bytes += unsaved
    printf "{\"records\": %d, \"bytes\": %d, \"last_id\": \"%d@%d\", \"total\": %d}\n", \
        row_of_last_day - finished, unsaved, row_of_last_day, bytes, total > progress
    fflush(progress)
    finished = row_of_last_day
    unsaved = 0
    system("sleep " (ENVIRON["BATCH_PAUSE_SECONDS"] + 0))
}

function run(command) {
    if (system(command) != 0) {
        print "daily: failed: " command
        broken = 1
        exit 1
    }
}
