"""Validates built manifests: python3 kubernetes.py CRDS VERSIONS FILE...

Kinds of Kubernetes itself meet the schemas that kubernetes-validate ships, in each of the versions (separated by
blanks); custom ones the schema of the CRD in directory CRDS. Strictly: a field that the schema does not have is a fault,
since a cluster would drop it in silence. A kind that neither knows is one too. Each resource is then given such a field,
and must fail.
"""

import copy
import pathlib
import sys

import jsonschema
import kubernetes_validate
import yaml


def strict(schema):
    """The schema of a CRD as JSON Schema that takes no field but its own."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items() if key != "properties"}
    if "properties" in schema:
        made["properties"] = {name: strict(value) for name, value in schema["properties"].items()}
        if "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            made["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    # Parts that only say what else must hold have no fields of their own.
    for part in ("allOf", "anyOf", "oneOf", "not"):
        if part in schema:
            made[part] = schema[part]
    return made


def custom_schemas(directory):
    schemas = {}
    for file in directory.glob("*.yaml"):
        for crd in yaml.safe_load_all(file.read_text()):
            spec = crd["spec"]
            for version in spec["versions"]:
                schema = strict(version["schema"]["openAPIV3Schema"])
                # Kubernetes' own part of each resource.
                schema["properties"]["metadata"] = {"type": "object"}
                schemas[f"{spec['group']}/{version['name']}", spec["names"]["kind"]] = schema
    return schemas


def faults(resource, schemas, versions):
    """What is wrong with a resource, one text each."""
    schema = schemas.get((resource["apiVersion"], resource["kind"]))
    if schema is not None:
        found = jsonschema.Draft202012Validator(schema).iter_errors(resource)
        return [f"{error.json_path}: {error.message[:300]}" for error in found]
    found = []
    for version in versions:
        try:
            kubernetes_validate.validate(resource, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            found.append(f"Kubernetes {version}: {error.message[:300]} at {list(error.path)}")
        except (kubernetes_validate.SchemaNotFoundError, kubernetes_validate.VersionNotSupportedError) as error:
            found.append(f"Kubernetes {version}: no schema for {resource['apiVersion']} {resource['kind']}: {error}")
    return found


def main(crds, versions, *files):
    schemas, versions = custom_schemas(pathlib.Path(crds)), versions.split()
    bad, seen = [], set()
    for file in map(pathlib.Path, files):
        resources = [resource for resource in yaml.safe_load_all(file.read_text()) if resource]
        if not resources:
            bad.append(f"{file.name}: is empty")
        for resource in resources:
            text = yaml.safe_dump(resource)
            if text in seen:
                continue
            seen.add(text)
            name = f"{file.name}: {resource['kind']} {resource['metadata']['name']}"
            bad.extend(f"{name}: {fault}" for fault in faults(resource, schemas, versions))
            wrong = copy.deepcopy(resource)
            (wrong["spec"] if "spec" in wrong else wrong)["noSuchField"] = 1
            if not faults(wrong, schemas, versions):
                bad.append(f"{name}: a field that does not exist is not noticed")
    print("\n".join(bad), file=sys.stderr)
    if bad:
        sys.exit(f"{len(bad)} faults in deploy/kubernetes")
    print(f"{len(seen)} resources of {len(files)} builds are valid in Kubernetes {', '.join(versions)}")


main(*sys.argv[1:])
