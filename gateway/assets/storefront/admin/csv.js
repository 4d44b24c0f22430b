// Comma-separated values (RFC 4180).

/** Returns the rows of a text: their fields, and the line on which each begins. Throws if a quoted field does not end. */
export function parseCsv(text) {
  const rows = [];
  let row = [];
  let line = 1;
  let firstLine = 1;
  let field = "";
  let isQuoted = false;
  const source = text.replace(/^\uFEFF/, "");
  for (let at = 0; at < source.length; at += 1) {
    const character = source[at];
    if (character === "\n") line += 1;
    if (isQuoted) {
      if (character !== '"') field += character;
      else if (source[at + 1] === '"') {
        field += '"';
        at += 1;
      } else isQuoted = false;
    } else if (character === '"' && field === "") isQuoted = true;
    else if (character === ",") {
      row.push(field);
      field = "";
    } else if (character === "\n") {
      row.push(field.replace(/\r$/, ""));
      rows.push({ line: firstLine, fields: row });
      row = [];
      field = "";
      firstLine = line;
    } else field += character;
  }
  if (isQuoted) throw new SyntaxError("a quoted field does not end");
  if (field !== "" || row.length) rows.push({ line: firstLine, fields: [...row, field.replace(/\r$/, "")] });
  return rows.filter(({ fields }) => fields.some((value) => value !== ""));
}

/** Returns rows as a text. A field that a spreadsheet would take for a formula begins with an apostrophe. */
export function formatCsv(rows) {
  const format = (value) => {
    const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value ?? "");
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => `${row.map(format).join(",")}\r\n`).join("");
}
