// Reads the graph of an ONNX file: nodes, names and shapes; the weights' bytes are passed over. Protobuf's wire format by hand.
const TEXT = new TextDecoder();

function* fields(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0;
    let scale = 1;
    for (;;) {
      const byte = bytes[at++];
      value += (byte & 127) * scale;
      if (byte < 128) return value;
      scale *= 128;
    }
  };
  while (at < bytes.length) {
    const key = varint();
    const kind = key & 7;
    const number = Math.floor(key / 8);
    if (kind === 0) yield [number, varint()];
    else if (kind === 1) {
      yield [number, null];
      at += 8;
    } else if (kind === 5) {
      yield [number, null];
      at += 4;
    } else if (kind === 2) {
      const length = varint();
      yield [number, bytes.subarray(at, at + length)];
      at += length;
    } else throw new Error("This is no ONNX file that this page can read.");
  }
}

const TYPES = { 1: "float32", 2: "uint8", 3: "int8", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64", 16: "bfloat16", 21: "uint4", 22: "int4" };

function tensor(bytes) {
  const found = { name: "", dims: [], type: "" };
  for (const [number, value] of fields(bytes)) {
    if (number === 1) {
      if (typeof value === "number") found.dims.push(value);
      else found.dims.push(...packed(value));
    } else if (number === 2) found.type = TYPES[value] ?? `type ${value}`;
    else if (number === 8) found.name = TEXT.decode(value);
  }
  return found;
}

function packed(bytes) {
  const found = [];
  let value = 0;
  let scale = 1;
  for (const byte of bytes) {
    value += (byte & 127) * scale;
    scale *= 128;
    if (byte < 128) {
      found.push(value);
      value = 0;
      scale = 1;
    }
  }
  return found;
}

function node(bytes) {
  const found = { inputs: [], outputs: [], name: "", op: "", domain: "" };
  for (const [number, value] of fields(bytes)) {
    if (number === 1) found.inputs.push(TEXT.decode(value));
    else if (number === 2) found.outputs.push(TEXT.decode(value));
    else if (number === 3) found.name = TEXT.decode(value);
    else if (number === 4) found.op = TEXT.decode(value);
    else if (number === 7) found.domain = TEXT.decode(value);
  }
  return found;
}

function named(bytes) {
  for (const [number, value] of fields(bytes)) if (number === 1) return TEXT.decode(value);
  return "";
}

export function readGraph(bytes) {
  const found = { nodes: [], weights: new Map(), inputs: [], outputs: [] };
  for (const [number, value] of fields(bytes)) {
    if (number !== 7) continue;
    for (const [part, content] of fields(value)) {
      if (part === 1) found.nodes.push(node(content));
      else if (part === 5) {
        const weight = tensor(content);
        found.weights.set(weight.name, weight);
      } else if (part === 11) found.inputs.push(named(content));
      else if (part === 12) found.outputs.push(named(content));
    }
  }
  found.inputs = found.inputs.filter((name) => !found.weights.has(name));
  return found;
}

// Of a download: the file itself, or the `.onnx` inside a stored (not deflated) zip.
export function graphBytes(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.length < 30 || view.getUint32(0, true) !== 0x04034b50) return bytes;
  let at = 0;
  while (at + 30 < bytes.length && view.getUint32(at, true) === 0x04034b50) {
    const [length, nameLength, extra] = [view.getUint32(at + 18, true), view.getUint16(at + 26, true), view.getUint16(at + 28, true)];
    const begin = at + 30 + nameLength + extra;
    if (TEXT.decode(bytes.subarray(at + 30, at + 30 + nameLength)).endsWith(".onnx")) return bytes.subarray(begin, begin + length);
    at = begin + length;
  }
  throw new Error("There is no ONNX file in this archive that this page can read.");
}
