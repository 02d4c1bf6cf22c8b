#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Real programs through NAT on XDP, beside those of the demo: what needs a helper
# (TFTP, SIP), many short connections (DNS, HTTP), one that idles for longer than
# the flowtable keeps it (SSH), one whose ruleset changes. What arrives must be
# what was sent; the share of packets that XDP carried is told, and must not
# be below what the kind of traffic allows: opening and closing are the stack's.

# shellcheck source=tests/lib.sh
. "$(dirname "$0")/lib.sh"

# rules [OFFLOAD]: a firewall with helpers; OFFLOAD is the rule that fills the flowtable
rules()
{
	on router nft -f - <<- EOT
	flush ruleset
	table inet router {
		flowtable ft { hook ingress priority filter; devices = { rc, rs }; }
		ct helper tftp { type "tftp" protocol udp; }
		ct helper sip { type "sip" protocol udp; }
		chain prerouting {
			type filter hook prerouting priority filter
			udp dport 69 ct helper set "tftp"
			udp dport 5060 ct helper set "sip"
		}
		chain forward {
			type filter hook forward priority filter; policy drop
			${1-ct state established meta l4proto { tcp, udp \} flow add @ft}
			ct state established,related accept
			iifname rc tcp dport { 22, 80 } accept
			iifname rc udp dport { 53, 69, 5060 } accept
		}
		chain postrouting {
			type nat hook postrouting priority srcnat
			oifname rs masquerade
		}
	}
	EOT
}

# carried NAME LEAST COMMAND...: it succeeds, with so many of 100 packets by XDP
carried()
{
	local name=$1 least=$2 out status all xdp

	shift 2
	on router conntrack -F 2> /dev/null
	all=$(accounted)
	xdp=$(counted)
	out=$("$@" 2>&1)
	status=$?
	all=$(($(accounted) - all))
	xdp=$(($(counted) - xdp))
	result $status "$name: whole" "$out"
	[ "$all" -gt 0 ] && [ $((100 * xdp)) -ge $((least * all)) ]
	result $? "$name: at least $least of 100 packets by XDP" "$xdp of $all"
	echo "# $name: $xdp of $all packets by XDP"
}

listens()
{
	on server ss -Hln "$1" "sport = $2" | grep -q .
}

tftp_get()
{
	rm -f got
	on client tftp -m binary 203.0.113.2 -c get middle got && cmp srv/middle got
}

# A call with 15 s of RTP, 50 packets a second, which the other side sends back; a
# slow kernel has not time for all
sip_call()
{
	on client timeout "$MINUTE" sipp -sf call.xml -i 10.0.1.2 -mp 7000 -m 1 -nostdin \
		-trace_err -error_file sip.err 203.0.113.2 > sip.log 2>&1 ||
		{ tail -40 sip.log; cat sip.err; return 1; }
	on router conntrack -L -p udp 2> /dev/null | grep -v port=5060 |
		grep -oE 'packets=[0-9]+' | sort | uniq -c | tee rtp
	if [ "$PATIENCE" = 1 ]; then
		grep -qE '^ *2 packets=7[45][0-9]$' rtp
	else
		awk '/packets=[3-7][0-9][0-9]$/ { n += $1 } END { exit n != 2 }' rtp
	fi
}

dns()
{
	python3 - "$QUERIES" <<- 'EOT'
	import struct
	import sys
	from lib import udp_socket
	bad, each = 0, int(sys.argv[1]) // 100
	for port in range(20000, 20100):
	    s = udp_socket("client", "10.0.1.2", port)
	    for i in range(each):
	        a, b = divmod(port % 100 * 100 + i, 100)
	        name = f"ip-192-0-{100 + a}-{b}"
	        ask = struct.pack("!6H", i, 0x100, 1, 0, 0, 0) + bytes((len(name),)) + \
	            name.encode() + b"\x04test\0\0\1\0\1"
	        s.sendto(ask, ("203.0.113.2", 53))
	        answer = s.recv(512)
	        bad += answer[:2] != ask[:2] or answer[-4:] != bytes((192, 0, 100 + a, b))
	    s.close()
	print(f"{bad} of {100 * each} answers are wrong")
	raise SystemExit(bad > 0)
	EOT
}

http_short()
{
	local want got

	want=$(for ((i = 0; i < REQUESTS; i++)); do cat srv/small; done | md5sum)
	got=$(on client curl -sS -H "Connection: close" "http://203.0.113.2/small?[1-$REQUESTS]" |
		md5sum)
	[ "$want" = "$got" ]
}

http_long()
{
	rm -f got
	on client curl -sS --limit-rate 2M -o got http://203.0.113.2/file && cmp srv/file got
}

offloaded()
{
	on router conntrack -L -p tcp --dport "$1" 2> /dev/null | grep -c OFFLOAD
}

# Idle for twice as long as the flowtable keeps it, then with much to say
ssh_idle()
{
	{
		echo first
		sleep "$PATIENCE"
		offloaded 22 >&2
		sleep $((7 * PATIENCE))
		offloaded 22 >&2
		cat srv/small
		sleep $((7 * PATIENCE))
		cat srv/file
	} 2> states | on client timeout "$MINUTE" ssh -T -i key -o StrictHostKeyChecking=no \
		-o UserKnownHostsFile=known root@203.0.113.2 cat > got || return
	xargs < states
	{ echo first; cat srv/small srv/file; } | cmp - got && [ "$(xargs < states)" = "1 0" ]
}

# Rules go and come, with flow add and without, while a transfer runs
rules_change()
{
	local pid

	http_long &
	pid=$!
	sleep 1
	for _ in 1 2 3; do
		rules ""
		sleep 0.5
		rules
		sleep 0.5
		on router nft add rule inet router forward tcp dport 9 drop
		on router nft delete chain inet router postrouting
		sleep 0.5
		rules
	done
	wait "$pid"
}

QUERIES=$(few 10000)
REQUESTS=$(few 1000)
mkdir -p /tmp/programs/srv /run/sshd
cd /tmp/programs || exit 1
head -c $((12 << 20)) /dev/urandom > srv/file
head -c $((2 << 20)) /dev/urandom > srv/middle
head -c 8000 /dev/urandom > srv/small
head -c $((15 * 8000)) /dev/urandom > voice
chmod -R a+rX .
modprobe -a nf_nat_tftp nf_nat_sip
hosts
rules
succeeds "attach" on router xdp_ct attach rc rs --counters

on server in.tftpd -L -s -a 203.0.113.2 "$PWD/srv" 2> tftpd.log &
on server dnsmasq -k -C /dev/null -a 203.0.113.2 -z --no-resolv --no-hosts --log-facility=- \
	--synth-domain=test,192.0.0.0/16,ip- 2> dnsmasq.log &
cat > nginx.conf <<- EOT
	events { }
	pid $PWD/nginx.pid;
	http { access_log off; server { listen 203.0.113.2:80; root $PWD/srv; } }
EOT
on server nginx -e "$PWD/nginx.log" -c "$PWD/nginx.conf" &
ssh-keygen -q -t ed25519 -N "" -f host
ssh-keygen -q -t ed25519 -N "" -f key
on server /usr/sbin/sshd -D -f /dev/null -h "$PWD/host" -o ListenAddress=203.0.113.2 -o StrictModes=no \
	-o AuthorizedKeysFile="$PWD/key.pub" -o PermitRootLogin=yes -o UsePAM=no 2> sshd.log &
on server sipp -sn uas -rtp_echo -i 203.0.113.2 -mp 7000 -nostdin > uas.log 2>&1 &
cat > call.xml <<- 'EOT'
	<?xml version="1.0" encoding="ISO-8859-1" ?>
	<scenario name="a call">
	<send retrans="500"><![CDATA[

	INVITE sip:service@[remote_ip]:[remote_port] SIP/2.0
	Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]
	From: caller <sip:caller@[local_ip]:[local_port]>;tag=[pid]SIPpTag00[call_number]
	To: service <sip:service@[remote_ip]:[remote_port]>
	Call-ID: [call_id]
	CSeq: 1 INVITE
	Contact: sip:caller@[local_ip]:[local_port]
	Max-Forwards: 70
	Content-Type: application/sdp
	Content-Length: [len]

	v=0
	o=user1 53655765 2353687637 IN IP[local_ip_type] [local_ip]
	s=-
	c=IN IP[local_ip_type] [local_ip]
	t=0 0
	m=audio [rtpstream_audio_port] RTP/AVP 8
	a=rtpmap:8 PCMA/8000

	]]></send>
	<recv response="100" optional="true"></recv>
	<recv response="180" optional="true"></recv>
	<recv response="200" rtd="true"></recv>
	<send><![CDATA[

	ACK sip:service@[remote_ip]:[remote_port] SIP/2.0
	Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]
	From: caller <sip:caller@[local_ip]:[local_port]>;tag=[pid]SIPpTag00[call_number]
	To: service <sip:service@[remote_ip]:[remote_port]>[peer_tag_param]
	Call-ID: [call_id]
	CSeq: 1 ACK
	Contact: sip:caller@[local_ip]:[local_port]
	Max-Forwards: 70
	Content-Length: 0

	]]></send>
	<nop><action><exec rtp_stream="voice,1,8,PCMA/8000"/></action></nop>
	<pause milliseconds="16000"/>
	<send retrans="500"><![CDATA[

	BYE sip:service@[remote_ip]:[remote_port] SIP/2.0
	Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]
	From: caller <sip:caller@[local_ip]:[local_port]>;tag=[pid]SIPpTag00[call_number]
	To: service <sip:service@[remote_ip]:[remote_port]>[peer_tag_param]
	Call-ID: [call_id]
	CSeq: 2 BYE
	Contact: sip:caller@[local_ip]:[local_port]
	Max-Forwards: 70
	Content-Length: 0

	]]></send>
	<recv response="200" crlf="true"></recv>
	</scenario>
EOT

wait_until listens -u 69
wait_until listens -u 53
wait_until listens -u 5060
wait_until listens -t 80
wait_until listens -t 22

carried "TFTP" 99 tftp_get
carried "SIP call with RTP" 90 sip_call
carried "DNS, $QUERIES queries on 100 ports" $((PATIENCE == 1 ? 95 : 85)) dns
carried "HTTP, $REQUESTS connections" 50 http_short
carried "HTTP, one long" 99 http_long
on router sysctl -qw net.netfilter.nf_flowtable_tcp_timeout=3
carried "SSH, idle beyond the time-out" 95 ssh_idle
on router sysctl -qw net.netfilter.nf_flowtable_tcp_timeout=300
carried "HTTP, while rules change" 45 rules_change
cleanup
finish
