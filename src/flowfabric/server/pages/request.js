// Sending a request from the page, and the curl command that does the same.

import { copyButton, el } from "./dom.js";
import { resolve, sample } from "./schemas.js";

const SHOWN_MAX = 100_000;
const base = new URL(".", location.href);

function addressOf(path, parameters, values) {
  let filled = path;
  const query = new URLSearchParams();
  for (const parameter of parameters) {
    const value = values.get(parameter.name) ?? "";
    if (parameter.in === "path") filled = filled.replace(`{${parameter.name}}`, encodeURIComponent(value));
    else if (parameter.in === "query" && value !== "") query.append(parameter.name, value);
  }
  const text = query.toString();
  return new URL(filled.slice(1) + (text ? `?${text}` : ""), base).href;
}

function quoted(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

function headersOf(parameters, values, token, body) {
  const headers = {};
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body !== null) headers["Content-Type"] = "application/json";
  for (const parameter of parameters) {
    const value = values.get(parameter.name);
    if (parameter.in === "header" && value) headers[parameter.name] = value;
  }
  return headers;
}

/** Write the command. A token is not written out: it would stay in the shell's history. */
export function curl(method, address, headers, body) {
  const lines = [`curl ${method === "GET" ? "" : `-X ${method} `}${quoted(address)}`];
  for (const [name, value] of Object.entries(headers)) {
    const line = name === "Authorization" ? '-H "Authorization: Bearer $FLOWFABRIC_TOKEN"' : `-H ${quoted(`${name}: ${value}`)}`;
    lines.push(line);
  }
  if (body !== null) lines.push(`-d ${quoted(body)}`);
  return lines.join(" \\\n  ");
}

function pretty(text, type) {
  if (!type.includes("json")) return text;
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

function inputFor(spec, parameter) {
  const [schema] = resolve(spec, parameter.schema);
  const attributes = { name: parameter.name, id: crypto.randomUUID?.() ?? `${parameter.name}-${Math.random()}`, required: parameter.required };
  if (schema.enum) {
    const words = parameter.required ? schema.enum : ["", ...schema.enum];
    return el("select", attributes, words.map((word) => el("option", { value: word }, word)));
  }
  const example = parameter.schema.default ?? schema.examples?.[0] ?? "";
  return el("input", { ...attributes, placeholder: String(example), autocomplete: "off", spellcheck: "false" });
}

/** Make the form of one operation: its inputs, the curl command that follows them, and the answer. */
export function tryIt(spec, path, method, operation, token) {
  const parameters = operation.parameters ?? [];
  const schema = operation.requestBody?.content?.["application/json"]?.schema;
  const inputs = parameters.map((parameter) => [parameter, inputFor(spec, parameter)]);
  const area = schema ? el("textarea", { "aria-label": "Body", spellcheck: "false" }) : null;
  if (area) area.value = JSON.stringify(sample(spec, schema), null, 2);
  const command = el("pre", {});
  const answer = el("div", { "aria-live": "polite" });
  let running = null;

  const current = (forExample) => {
    const values = new Map(
      inputs.map(([parameter, input]) => [parameter.name, input.value || (forExample && parameter.required ? input.placeholder : "")]),
    );
    const body = area ? area.value : null;
    return [addressOf(path, parameters, values), headersOf(parameters, values, token(), body), body];
  };
  const refresh = () => { command.textContent = curl(method, ...current(true)); };
  const stop = el("button", { type: "button", hidden: true, onclick: () => running?.abort() }, "Stop");
  const send = async (event) => {
    event.preventDefault();
    running?.abort();
    const mine = (running = new AbortController());
    stop.hidden = false;
    answer.replaceChildren(el("p", { class: "copied" }, "waiting for the answer"));
    const started = performance.now();
    try {
      const [address, headers, body] = current(false);
      const response = await fetch(address, { method, headers, body: body ?? undefined, signal: mine.signal });
      const text = await response.text();
      const took = Math.round(performance.now() - started);
      const type = response.headers.get("content-type") ?? "";
      const shown = pretty(text, type);
      answer.replaceChildren(
        el("p", {}, el("span", { class: `status ${response.ok ? "good" : "bad"}` }, `${response.status} ${response.statusText}`), `  ${took} ms, ${text.length} characters`),
        shown ? el("pre", {}, shown.slice(0, SHOWN_MAX)) : "",
      );
    } catch (error) {
      const text = mine.signal.aborted ? "Stopped." : `No answer: ${error.message}. Is the server running?`;
      if (running === mine) answer.replaceChildren(el("p", { class: "status bad" }, text));
    }
    if (running === mine) stop.hidden = true;
  };
  const form = el(
    "form",
    { class: "try", onsubmit: send, oninput: refresh },
    el("div", { class: "inputs" }, inputs.map(([parameter, input]) => [el("label", { for: input.id }, parameter.name), input]).flat()),
    area,
    el("div", { class: "row" }, el("button", { class: "main", type: "submit" }, "Send"), stop),
    answer,
  );
  document.getElementById("token").addEventListener("input", refresh);
  refresh();
  return [el("h3", {}, "Try it"), form, el("h3", {}, "curl"), command, el("div", { class: "row" }, copyButton(() => command.textContent))];
}
