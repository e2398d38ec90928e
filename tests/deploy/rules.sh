#!/usr/bin/env bash
# Checks the alert rules of deploy/prometheus with promtool and runs their tests; fails as well where an alert has no test
# in which it fires, none in which it does not, or no section in deploy/RUNBOOK.md, and where a test or a section names
# an alert that is not there.
#
# tests/deploy/prometheus.sh brings promtool.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

tool=$(tests/deploy/prometheus.sh)/promtool
"$tool" check rules deploy/prometheus/rules.yml
"$tool" check config --syntax-only deploy/prometheus/prometheus.yml
"$tool" test rules deploy/prometheus/tests/*.yml

# The tests are read as lines: each `alertname:` stands above its `exp_alerts:`, which is `[]` where it must not fire.
awk '
  function fault(text) { print "tests/deploy/rules.sh: " text; faults++ }
  FILENAME ~ /rules\.yml$/ && $1 == "-" && $2 == "alert:" { alerts[$3]; alert = $3 }
  FILENAME ~ /rules\.yml$/ && $1 == "runbook_url:" { runbook[alert] = $2 }
  FILENAME ~ /tests\// && $1 == "alertname:" { if (open) fault(open " has no exp_alerts in " FILENAME); open = $2; named[$2] }
  FILENAME ~ /tests\// && $1 == "exp_alerts:" { if ($2 == "[]") quiet[open]; else fires[open]; open = "" }
  FILENAME ~ /RUNBOOK\.md$/ && /^## FlinksBridge/ { sections[$2] }
  END {
    for (alert in alerts) {
      if (!(alert in fires)) fault(alert " has no test in which it fires")
      if (!(alert in quiet)) fault(alert " has no test in which it does not fire")
      if (!(alert in sections)) fault(alert " has no section in deploy/RUNBOOK.md")
      if (runbook[alert] != "RUNBOOK.md#" tolower(alert)) fault(alert " names another section: " runbook[alert])
    }
    for (name in named) if (!(name in alerts)) fault("a test names " name ", which is no alert")
    for (name in sections) if (!(name in alerts)) fault("deploy/RUNBOOK.md has a section " name ", which is no alert")
    for (alert in alerts) count++
    if (!count) fault("no alert was found")
    printf "%d alerts, each with tests that fire and that do not, and a section in deploy/RUNBOOK.md\n", faults ? 0 : count
    exit faults > 0
  }
' deploy/prometheus/rules.yml deploy/prometheus/tests/*.yml deploy/RUNBOOK.md
