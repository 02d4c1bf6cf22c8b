#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# What is said of xdp_ct is so: the manual page has all options, reasons and fields,
# and completion offers the words that there are.

# shellcheck source=tests/lib.sh
. "$(dirname "$0")/lib.sh"

SAMPLE=$TESTS/../samples/xdp_ct

# options COMMAND: those of its help
options()
{
	xdp_ct "$1" --help | grep -oE -- '^ +(-., )? *--[a-z-]+' | grep -oE -- '--[a-z-]+' |
		grep -v -- --usage | sort | xargs
}

# complete WORD...: what is offered for the last
complete_words()
{
	bash -c '. "$0" || exit
		COMP_WORDS=("$@")
		COMP_CWORD=$(($# - 1))
		COMPREPLY=()
		"$(complete -p xdp_ct | grep -oE -- "-F [^ ]+" | cut -c 4-)"
		printf "%s\n" "${COMPREPLY[@]}"' "$SAMPLE/xdp_ct.bash-completion" "$@" | sort | xargs
}

equal "completion: xdp_ct" "--help attach detach flows monitor stats status" \
	"$(complete_words xdp_ct "")"
equal "completion: xdp_ct at" attach "$(complete_words xdp_ct at)"
equal "completion: xdp_ct sta" "stats status" "$(complete_words xdp_ct sta)"
for command in attach detach status stats flows monitor; do
	equal "completion: xdp_ct $command --: as in its help" "$(options $command)" \
		"$(complete_words xdp_ct $command --)"
done
equal "completion: a device" lo "$(complete_words xdp_ct attach --counters l)"
equal "completion: a file beside the devices is none" bond0 "$(complete_words xdp_ct attach bond)"
for mode in --mode -M; do
	equal "completion: $mode" "native skb" "$(complete_words xdp_ct attach $mode "")"
done
for proto in --proto -p; do
	equal "completion: $proto u" udp "$(complete_words xdp_ct flows $proto u)"
done
for family in --family -f; do
	equal "completion: $family" "ipv4 ipv6" "$(complete_words xdp_ct flows $family "")"
done
for dev in --dev -i; do
	equal "completion: $dev" lo "$(complete_words xdp_ct flows $dev l)"
done
for number in "attach --max-entries" "attach -n" "flows --src" "flows -s" "flows --dst" \
	"flows -d" "flows --sport" "flows --dport" "flows --mark" "flows -m" \
	"flows --zone" "flows -z"; do
	# shellcheck disable=SC2086 # words of their own
	equal "completion: $number: no words" "" "$(complete_words xdp_ct $number "")"
done
for pin in --pin -P; do
	matches "completion: $pin: a folder" "^/proc/sys" \
		"$(complete_words xdp_ct attach $pin /proc/sy)"
done

# missing PREFIX WORD...: those that no line of the manual has behind PREFIX
missing()
{
	local prefix=$1 word

	shift
	for word; do
		grep -qE -- "$prefix$word( |\$)" "$SAMPLE/xdp_ct.8" || echo "$word"
	done
}

# shellcheck disable=SC2046 # words
for command in attach detach status stats flows monitor; do
	equal "manual: options of $command" "" \
		"$(missing 'Fl (. , )?-' $(options $command | sed 's/--//g'))"
	mapfile -t short < <(xdp_ct $command --help | sed -n 's/^ *-\([A-Za-z]\), --\([a-z-]*\).*/\1 , -\2/p')
	equal "manual: short options of $command" "" "$(missing 'Fl ' "${short[@]}")"
done
reasons=$(sed -n '/^enum flowmap_reason/,/^}/s/^\tFLOWMAP_\([A-Z_]*\),.*/\L\1/p' \
	"$SAMPLE/flowmap.bpf.h" | grep -vx forwarded)
# shellcheck disable=SC2086 # words
equal "manual: the $(wc -w <<< "$reasons") reasons" "" "$(missing '(It Cm|Cm|\.Pq Cm) ' $reasons)"
# shellcheck disable=SC2046 # words
equal "manual: why a flow needs the stack" "" "$(missing 'It Cm ' \
	$(sed -n 's/^\t{ [A-Z_]*,\t*"\([a-z_]*\)" },/\1/p' "$SAMPLE/flows.c"))"

hosts
ruleset
on router xdp_ct attach rc rs --counters
python3 -c 'from flows import UdpFlow; UdpFlow().talk()'

# fields COMMAND FIELD...: of its JSON, which is standard input: neither more nor less
fields()
{
	local command=$1

	shift
	equal "JSON of $command: its fields" "$(printf '%s\n' "$@" | sort | xargs)" \
		"$(jq -r 'paths | map(select(type == "string")) | last // empty' | sort -u | xargs)"
	equal "manual: JSON of $command" "" "$(missing '(^| )' "$@")"
}

flow="protocol direction ingress dev ifindex src dst sport dport encap egress lladdr source_lladdr
	mtu snat dnat packets bytes idle status mark zone id needs_stack"
fields status module loaded devices dev attached mode prog_id flowmap_id max_entries entries full \
	counters strict_tcp dispatcher needs_stack \
	< <(on router xdp_ct status --json | jq 'del(.devices[].needs_stack[])') # any reasons
# shellcheck disable=SC2086 # words
fields flows $flow < <(on router xdp_ct flows --json)
# of one device, and any reasons
fields stats forwarded packets bytes < <(on router xdp_ct stats --json | jq '.rc | {forwarded}')

# told: one more flow and program; has monitor told of such?
told()
{
	on router conntrack -D -p udp
	python3 -c 'from flows import UdpFlow; UdpFlow().talk()'
	on router xdp_ct attach rc rs --counters
	grep '"flow"' /tmp/monitor.json && grep '"mode"' /tmp/monitor.json
}

nsenter --net=/run/netns/router xdp_ct monitor --json > /tmp/monitor.json &
monitor=$!
wait_until told
kill $monitor
# shellcheck disable=SC2086 # words
fields monitor time event mode strict_tcp prog_id flow $flow < /tmp/monitor.json

for command in ":0" "nowhere:1" "--sport:64"; do
	on router xdp_ct status ${command%:*} > /dev/null 2>&1
	equal "exit status: xdp_ct status ${command%:*}" "${command#*:}" $?
done
cleanup
finish
