#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# make demo: a client behind a router that masquerades, a server in front of it,
# an ordinary ruleset, xdp_ct on both of the router's devices, real programs.
# Ends with 0 only if all transfers arrived whole and XDP carried at least 99
# of 100 packets of each. With --shell (make shell) it stops when all is up.
#
# How packets are told apart: conntrack's accounting counts all packets of a
# connection, whichever way they went; xdp_ct counts what it forwarded. Only
# one transfer runs at a time, so what is new in both is that transfer's.

# shellcheck source=tests/lib.sh
. "$(dirname "$0")/lib.sh"

MB=${DEMO_MB:-48}
SECONDS_EACH=${DEMO_SECONDS:-6}
LEAST=${DEMO_LEAST:-99}
bad=0
rows=()
seen=

say()
{
	printf '\n== %s\n' "$*"
}

firewall()
{
	on router nft -f - <<- EOT
	flush ruleset
	table inet router {
		flowtable ft { hook ingress priority filter; devices = { rc, rs }; }
		ct helper ftp { type "ftp" protocol tcp; }
		chain prerouting {
			type filter hook prerouting priority filter
			tcp dport 21 ct helper set "ftp"
		}
		chain forward {
			type filter hook forward priority filter; policy drop
			ct state established meta l4proto { tcp, udp } flow add @ft
			ct state established,related accept
			iifname rc tcp dport { 21, 5201 } accept
			iifname rc udp dport { 7, 5201 } accept
			ct status dnat accept
		}
		chain prenat {
			type nat hook prerouting priority dstnat
			iifname rs tcp dport 8080 dnat ip to 10.0.1.2:80
		}
		chain postnat {
			type nat hook postrouting priority srcnat
			oifname rs masquerade
		}
	}
	EOT
}

# All packets of connections with an id that is not in $seen, and the busiest
# of them as text
new_conntracks()
{
	on router conntrack -L -o id 2> /dev/null | awk -v seen=" $seen " '
	{
		split("", v); n = 0
		for (i = 1; i <= NF; i++)
			if (split($i, f, "=") == 2)
				v[f[1], ++k[f[1], NR]] = f[2]
		if (index(seen, " " v["id", 1] " "))
			next
		packets = v["packets", 1] + v["packets", 2]
		total += packets
		if (packets > most) {
			most = packets
			line = sprintf("%s %s:%s > %s:%s", $1, v["src", 1], v["sport", 1],
				       v["dst", 1], v["dport", 1])
			nat = ""
			if (v["dst", 2] != v["src", 1] || v["dport", 2] != v["sport", 1])
				nat = "snat " v["dst", 2] ":" v["dport", 2]
			if (v["src", 2] != v["dst", 1] || v["sport", 2] != v["dport", 1])
				nat = nat (nat ? " " : "") "dnat " v["src", 2] ":" v["sport", 2]
		}
	}
	END { printf "%d|%s|%s", total, line, nat }'
}

# transfer NAME COMMAND...: run it, then note who carried its packets
transfer()
{
	local name=$1 before total line nat xdp whole=whole share

	shift
	seen=$(on router conntrack -L -o id 2> /dev/null | grep -o ' id=[0-9]*' | cut -d= -f2 | xargs)
	before=$(counted)
	"$@" || whole=DAMAGED
	IFS='|' read -r total line nat <<< "$(new_conntracks)"
	xdp=$(($(counted) - before))
	share=$((total ? 1000 * xdp / total : 0))
	[ "$whole" = whole ] && [ "$share" -ge $((10 * LEAST)) ] || bad=1
	rows+=("$(printf '%-16s %-41s %-24s %4d %7d %5s%% %s' "$name" "$line" "$nat" \
		$((total - xdp)) "$xdp" "$((share / 10)).$((share % 10))" "$whole")")
	printf '   %-18s %s, %s of %s packets by XDP\n' "$name" "$whole" "$xdp" "$total"
}

iperf_tcp()
{
	on client timeout "$MINUTE" iperf3 -J -c 203.0.113.2 -t "$SECONDS_EACH" > /tmp/iperf.json &&
		jq -e '.end.sum_sent.bytes > 0 and .end.sum_sent.bytes - .end.sum_received.bytes < 4e6' \
			/tmp/iperf.json > /dev/null
}

iperf_udp()
{
	on client timeout "$MINUTE" iperf3 -J -c 203.0.113.2 -u -b 10M -w 2M -t "$SECONDS_EACH" > /tmp/iperf.json &&
		jq -e '.end.sum.packets > 0 and .end.sum.lost_packets == 0' /tmp/iperf.json > /dev/null
}

# From outside to the client, through the port forward
forward()
{
	rm -f /tmp/forwarded
	on client timeout "$MINUTE" socat -u TCP4-LISTEN:80,reuseaddr CREATE:/tmp/forwarded &
	wait_until on client sh -c 'ss -ltn | grep -q :80'
	on server timeout "$MINUTE" socat -u OPEN:/tmp/file TCP4:203.0.113.1:8080 && wait $! &&
		cmp -s /tmp/file /tmp/forwarded
}

# ftp get|put passive|active
ftp()
{
	local mode=on

	[ "$2" = passive ] || mode=off
	rm -f /tmp/got /srv/ftp/upload/*
	if [ "$1" = get ]; then
		set -- get /pub/file -o /tmp/got
	else
		set -- put /tmp/file -o /upload/got
	fi
	on client timeout "$MINUTE" lftp -c "set ftp:passive-mode $mode; set net:max-retries 2; set net:timeout 20
		open ftp://203.0.113.2; $*" > /tmp/lftp.log 2>&1 &&
		cmp -s /tmp/file "$([ "$1" = get ] && echo /tmp/got || echo /srv/ftp/upload/got)"
}

say "client 10.0.1.2 --- router --- server 203.0.113.2, joined by veth, ruleset as on any router"
hosts
modprobe nf_conntrack_ftp
sysctl -qw net.core.rmem_max=4194304 net.core.wmem_max=4194304
firewall
on router xdp_ct attach rc rs --counters || exit 1
on router xdp_ct status

head -c $((MB << 20)) /dev/urandom > /tmp/file
mkdir -p /srv/ftp/pub /srv/ftp/upload /run/vsftpd/empty
cp /tmp/file /srv/ftp/pub
chmod 777 /srv/ftp/upload
cat > /tmp/vsftpd.conf <<- EOT
	listen=YES
	listen_address=203.0.113.2
	background=NO
	anonymous_enable=YES
	write_enable=YES
	anon_upload_enable=YES
	anon_umask=022
	connect_from_port_20=YES
	seccomp_sandbox=NO
EOT
on server vsftpd /tmp/vsftpd.conf 2> /dev/null &
on server iperf3 -s > /dev/null 2>&1 &
wait_until on server sh -c 'ss -ltn | grep -q :21 && ss -ltn | grep -q :5201'

if [ "$1" = --shell ]; then
	say "all is up; the hosts are the network namespaces client, router and server"
	cat <<- 'EOT'
	   nsenter --net=/run/netns/client iperf3 -c 203.0.113.2 -t 60 &
	   nsenter --net=/run/netns/router xdp_ct flows        (or stats, status)
	   nsenter --net=/run/netns/router conntrack -L
	   bpftool map dump name flowmap
	EOT
	exit 0
fi

say "transfers ($MB MB files, $SECONDS_EACH s of iperf3)"
transfer "iperf3 TCP" iperf_tcp
transfer "iperf3 UDP" iperf_udp
transfer "port forward" forward
transfer "FTP get passive" ftp get passive
transfer "FTP get active" ftp get active
transfer "FTP put passive" ftp put passive
transfer "FTP put active" ftp put active

on client iperf3 -c 203.0.113.2 -t 20 > /dev/null 2>&1 &
sleep 2
on router conntrack -L 2> /dev/null | grep OFFLOAD | grep -v dport=21 > /tmp/conntrack
on router bpftool -j map dump name flowmap > /tmp/dump
on router xdp_ct flows > /tmp/flows
on router xdp_ct stats > /tmp/stats

say "conntrack -L, of a transfer that runs"
fold -s -w 98 /tmp/conntrack
say "bpftool map dump name flowmap: one direction of it"
jq -c 'max_by(.formatted.value.bytes).formatted | .key, .value' /tmp/dump | fold -w 98
say "xdp_ct flows"
fold -s -w 98 /tmp/flows
say "xdp_ct stats"
fold -s -w 98 /tmp/stats

say "connections: packets by the slow path, by XDP"
printf '%-16s %-41s %-24s %4s %7s %6s\n' transfer connection NAT slow XDP share
printf '%s\n' "${rows[@]}"

cleanup
if [ "$bad" = 0 ]; then
	say "all transfers arrived whole, each with at least $LEAST of 100 packets by XDP"
else
	say "NOT all transfers arrived whole with at least $LEAST of 100 packets by XDP"
fi
exit "$bad"
