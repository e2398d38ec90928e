# Steps of a script: what runs, how long it took and how it ended. Sourced by tests/run.sh and .ci/run.

# What a step ends with that could not be made here, and said why: its line says so, and the next step follows.
not_checked=75

# How a step ended, in words.
ended() {
  case $1 in
    0) echo ok ;;
    "$not_checked") echo 'NOT CHECKED' ;;
    *) echo "FAILED ($1)" ;;
  esac
}

# Runs a step and says how long it took; the script ends where it failed.
step() {
  local name=$1 began=$SECONDS result=0
  shift
  printf '\n== %s\n' "$name"
  # Not in an `if`: that would switch off `set -e` inside the functions that are steps.
  set +e
  (set -e; "$@")
  result=$?
  set -e
  printf '== %s: %s after %d s\n' "$name" "$(ended "$result")" $((SECONDS - began))
  [[ $result == 0 || $result == "$not_checked" ]]
}

# Steps beside others: one after the other, at the lowest priority, so that those who wait for something find the cores
# free. What they print comes when they are waited for.
beside_names=()
beside_groups=()
beside_directory=
beside_last=

# Adds a step to those beside.
beside() {
  local name=$1 before=$beside_last number=${#beside_names[@]} log
  shift
  if [[ -z $beside_directory ]]; then
    beside_directory=$(mktemp -d)
    # For the scripts that this one calls.
    export STEPS_BESIDE="${STEPS_BESIDE:-} $beside_directory"
    trap end_beside EXIT
  fi
  log=$beside_directory/$number
  beside_names+=("$name")
  : >"$log.begun"
  # In a process group of its own, to be ended as a whole.
  set -m
  (
    # The one before is no child of this shell.
    while [[ -n $before && ! -e $before.ended ]]; do sleep 0.2; done
    renice -n 19 -p "$BASHPID" >/dev/null
    SECONDS=0 result=0
    set +e
    (set -e; "$@") &>"$log"
    result=$?
    printf '%s %s\n' "$result" "$SECONDS" >"$log.part"
    mv "$log.part" "$log.ended"
  ) &
  set +m
  beside_groups+=($!)
  beside_last=$log
}

# Prints a step beside that has ended; fails where it has failed.
tell_beside() {
  local number=$1 result seconds
  read -r result seconds <"$beside_directory/$number.ended"
  printf '\n== %s (beside others)\n' "${beside_names[$number]}"
  cat "$beside_directory/$number"
  printf '== %s: %s after %d s\n' "${beside_names[$number]}" "$(ended "$result")" "$seconds"
  beside_names[number]=
  [[ $result == 0 || $result == "$not_checked" ]]
}

# Waits for all steps beside, and prints them; fails where one has failed.
join_beside() {
  local number failed=0
  for number in "${!beside_names[@]}"; do
    [[ -n ${beside_names[$number]} ]] || continue
    until [[ -e $beside_directory/$number.ended ]]; do sleep 0.2; done
    tell_beside "$number" || failed=1
  done
  [[ $failed == 0 ]]
}

# Waits until nothing runs beside, neither here nor in the scripts that call this one.
alone() {
  local directory begun
  for directory in ${STEPS_BESIDE:-}; do
    for begun in "$directory"/*.begun; do
      until [[ ! -e $begun || -e ${begun%.begun}.ended ]]; do sleep 0.2; done
    done
  done
}

# Where the script ends before them: prints the steps beside that have ended, and ends the others.
end_beside() {
  local number
  for number in "${!beside_names[@]}"; do
    [[ -n ${beside_names[$number]} ]] || continue
    if [[ -e $beside_directory/$number.ended ]]; then
      tell_beside "$number" || true
    else
      kill -- "-${beside_groups[$number]}" 2>/dev/null || true
    fi
  done
  rm -rf "$beside_directory"
}

# The end, with the time of all, and whether that is within so many seconds. A machine may be slow, so being over is said
# and is no failure: whoever has made it slower sees by the times above where.
finish() {
  local budget=$1 verdict=within
  ((SECONDS <= budget)) || verdict='OVER'
  printf '\n== all of it: %d s, %s its budget of %d s\n' "$SECONDS" "$verdict" "$budget"
  exit 0
}
