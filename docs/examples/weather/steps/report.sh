#!/bin/sh
# Writes output/report.txt, a month at a time.
#
# Exactly-once like the other steps. Here the cursor is "month@bytes", such as "07@731",
# and the reports go through the `oxide_flow progress` command.
set -eu

input=output/daily.csv
output=output/report.txt
cursor=${OXIFLOW_LAST_PROCESSED_ID:-00@0}
last_month=${cursor%@*}
bytes=${cursor#*@}

echo "report: starting after month $last_month"
if [ "$last_month" = 00 ]; then
    {
        echo "Mean air temperature by month, in degrees Celsius."
        echo "Normals are 30-year averages; measured are the days of 2012 to 2015."
        echo
        echo "             SF     Seattle     Seattle     Seattle    days"
        echo "month    normal      normal    measured  difference    used"
    } > "$output"
elif [ "$(wc -c < "$output")" -ge "$bytes" ]; then
    truncate -s "$bytes" "$output"
else
    echo "report: $output is shorter than the cursor says; was it deleted? Start a fresh run."
    exit 1
fi

total=$(grep -c '[0-9]$' "$input")
for month in 01 02 03 04 05 06 07 08 09 10 11 12; do
    [ "$month" \> "$last_month" ] || continue
    days=$(grep -c ",....-$month-" "$input")
    awk -v month="$month" -f steps/month.awk "$input" >> "$output"

    # Commit first: what is reported is never done again.
    sync "$output"
    length=$(wc -c < "$output")
    oxide_flow progress --records "$days" --bytes $((length - bytes)) --last-id "$month@$length" --total "$total"
    bytes=$length
    sleep "${BATCH_PAUSE_SECONDS:-0}"
done
echo "report: done, $bytes bytes in $output"
