# SPDX-License-Identifier: GPL-2.0
#
# gnuplot -e "data='bench.dat'; chart='bench.svg'": the paths side by side
set terminal svg size 900,420 font "sans-serif,13" background rgb "white"
set output chart
set title "Instructions a packet, IPv4 UDP with NAT, from client's device to server's"
set style data histograms
set style histogram clustered gap 1
set style fill solid 0.9 border lt -1
set key top left title "flows" samplen 2
set yrange [0:*]
set grid y
set xtics scale 0 font "sans-serif,10" noenhanced
stats data using 0 nooutput
columns = STATS_columns
plot for [i=2:columns] data using i:xtic(1) title columnheader(i)
