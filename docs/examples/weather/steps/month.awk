# One line of the report: averages the days of the month given as `-v month=07`.

BEGIN { FS = "," }

substr($3, 6, 2) == month {
    series = $1 " " $2
    sum[series] += $5
    days[series]++
}

END {
    normal = mean("seattle normal")
    measured = mean("seattle measured")
    printf "%-7s%12.2f%12.2f%12.2f%12.2f%8d\n", \
        month, mean("sf normal"), normal, measured, measured - normal, days["seattle measured"]
}

function mean(series) {
    return sum[series] / days[series]
}
