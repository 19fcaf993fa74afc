"""Reads what the audit store has with other people's code, and says how many rows there are and how many
denials of the network."""
import collections, csv, json, sys

import duckdb, jsonschema, polars, pyarrow.ipc, pyarrow.parquet
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema

segment, parquet, table, lines, events = sys.argv[1:]
WHERE = "class = 'network' AND verdict = 'deny'"
read = {}

with pyarrow.ipc.open_stream(segment) as stream:
    arrow = stream.read_all()
arrow.validate(full=True)
rows = arrow.select(["class", "verdict"]).to_pylist()
is_denied = lambda row: (row["class"], row["verdict"]) == ("network", "deny")
read["pyarrow"] = [arrow.num_rows, sum(map(is_denied, rows))]

count = lambda of: duckdb.sql(f"SELECT count(*), count(*) FILTER ({WHERE}) FROM {of}").fetchall()[0]
read["duckdb"] = list(count("arrow"))
read["parquet"] = list(count(f"read_parquet('{parquet}')"))
read["csv"] = list(count(f"read_csv('{table}')"))

frame = polars.read_ipc_stream(segment)
denied = frame.filter((polars.col("class") == "network") & (polars.col("verdict") == "deny"))
read["polars"] = [frame.height, denied.height]
assert frame["sandbox"].cast(polars.String).to_list() == arrow["sandbox"].to_pylist()
assert pyarrow.parquet.read_table(parquet)["path"].to_pylist() == arrow["path"].to_pylist()

rows = [json.loads(line) for line in open(lines)]
read["jsonl"] = [len(rows), sum(map(is_denied, rows))]

schema = OcsfJsonSchemaEmbedded(get_ocsf_schema(version="1.5.0"))
classes, validators = collections.Counter(), {}
for line in open(events):
    event = json.loads(line)
    of = event["class_uid"]
    if of not in validators:
        profiles = event["metadata"]["profiles"]
        name = schema.lookup_class_name_from_uid(of)
        validators[of] = jsonschema.Draft202012Validator(schema.get_class_schema(name, profiles))
    validators[of].validate(event)
    classes[of] += 1
read["ocsf"], read["classes"] = sum(classes.values()), classes
print(json.dumps(read))
