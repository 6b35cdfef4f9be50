// Prints what zarrita.js reads of arrays of a run: a line of JSON each, the first rows as raw bytes.
// Copied beside a node_modules that has it, and called: node zarrita_read.mjs RUN ROWS ARRAY…
import FileSystemStore from "@zarrita/storage/fs";
import * as zarr from "zarrita";

const [run, rows, ...arrays] = process.argv.slice(2);
const root = zarr.root(new FileSystemStore(run));

for (const path of arrays) {
  const line = { path };
  try {
    const array = await zarr.open.v3(root.resolve(path), { kind: "array" });
    const { data, shape } = await zarr.get(array, [
      zarr.slice(Number(rows)),
      ...array.shape.slice(1).map(() => null),
    ]);
    const raw = Buffer.from(data.buffer, data.byteOffset, data.byteLength).toString("base64");
    Object.assign(line, { length: array.shape[0], dtype: array.dtype, shape, raw });
  } catch (error) {
    line.error = String(error);
  }
  console.log(JSON.stringify(line));
}
