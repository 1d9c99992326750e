// The page: what /openapi.json says, grouped by concept, searchable, and ready to be tried.

import { el, folded, inline, prose } from "./dom.js";
import { tryIt } from "./request.js";
import { resolve, schemaView, typeName } from "./schemas.js";

const METHODS = ["get", "post", "put"];
const byId = (id) => document.getElementById(id);
const token = () => byId("token").value.trim();

function operationsOf(spec) {
  return Object.entries(spec.paths).flatMap(([path, item]) =>
    METHODS.filter((method) => item[method]).map((method) => ({ path, method, operation: item[method] })),
  );
}

function pathView(path) {
  return path.split(/(\{[^}]+\})/).map((part) => (part.startsWith("{") ? el("i", {}, part) : part));
}

function chips(operation) {
  const facts = operation["x-flowfabric"];
  if (!facts) return null;
  const words = [facts.kind, `needs scope ${facts.scope}`];
  if (facts.long_wait) words.push("may wait");
  if (operation.requestBody) words.push(`body at most ${Math.round(facts.body_max_bytes / 1024)} KiB`);
  words.push(`since ${facts.since}`);
  return el("ul", { class: "chips" }, words.map((word) => el("li", {}, word)));
}

function repeating(operation) {
  const facts = operation["x-flowfabric"];
  if (!facts) return [];
  const because = facts.repeatable_because;
  const reason = because ? because[0].toLowerCase() + because.slice(1) : `by its ${facts.repeatable.replace("_", " ")}.`;
  const text =
    facts.repeatable === "no"
      ? "Not safe to send again after a lost answer: look first."
      : `Safe to send again after a lost answer: ${reason}`;
  return [el("p", { class: "said" }, text)];
}

function parameterView(spec, operation) {
  if (!operation.parameters?.length) return [];
  const rows = operation.parameters.map((parameter) => {
    const byDefault = parameter.schema.default === undefined ? "" : ` = ${JSON.stringify(parameter.schema.default)}`;
    const [found] = resolve(spec, parameter.schema);
    return el(
      "li",
      {},
      el("span", { class: "name" }, parameter.name),
      el("span", { class: "type" }, `${parameter.in}, ${typeName(spec, found)}${byDefault}`),
      parameter.required ? el("span", { class: "must" }, "required") : null,
      parameter.description ? el("div", { class: "about" }, inline(parameter.description)) : null,
    );
  });
  return [el("h3", {}, "Parameters"), el("ul", { class: "fields" }, rows)];
}

function answerView(spec, [status, answer]) {
  const [found] = resolve(spec, answer);
  const good = status.startsWith("2");
  const content = Object.entries(found.content ?? {});
  const shown = good
    ? content.map(([type, { schema }]) =>
        schema && (schema.$ref || schema.oneOf || schema.allOf)
          ? folded({}, `${type}: ${typeName(spec, schema)}`, () => schemaView(spec, schema))
          : el("p", { class: "copied" }, type, schema?.description ? `: ${schema.description}` : ""),
      )
    : [];
  return el(
    "li",
    {},
    el("span", { class: `status ${good ? "good" : "bad"}` }, status === "default" ? "any" : status),
    el("div", {}, prose(found.description ?? ""), shown),
  );
}

function operationBody(spec, { path, method, operation }) {
  const body = operation.requestBody?.content?.["application/json"]?.schema;
  return el(
    "div",
    { class: "body" },
    chips(operation),
    operation.description ? prose(operation.description) : null,
    repeating(operation),
    parameterView(spec, operation),
    body ? [el("h3", {}, "Body"), ...schemaView(spec, body)] : null,
    el("h3", {}, "Answers"),
    el("ul", { class: "answers" }, Object.entries(operation.responses).map((entry) => answerView(spec, entry))),
    tryIt(spec, path, method.toUpperCase(), operation, token),
  );
}

function operationCard(spec, entry) {
  const { path, method, operation } = entry;
  const summary = [
    el("span", { class: `method ${method}` }, method.toUpperCase()),
    el("span", { class: "path" }, pathView(path)),
    el("span", { class: "said" }, el("span", { class: "code" }, operation.operationId), "  ", inline(operation.summary)),
  ];
  const card = folded({ class: "card", id: `op/${operation.operationId}` }, summary, () => operationBody(spec, entry));
  const refuses = operation["x-flowfabric"]?.refuses ?? [];
  card.dataset.words = [operation.operationId, path, operation.summary, operation.description, ...refuses].join(" ").toLowerCase();
  return card;
}

function recordCard(spec, name, schema) {
  const summary = [el("span", {}), el("span", { class: "code" }, name), el("span", { class: "said" }, inline((schema.description ?? "").split("\n")[0]))];
  const card = folded({ class: "card", id: `record/${name}` }, summary, () =>
    el("div", { class: "body" }, prose(schema.description ?? ""), schemaView(spec, schema)),
  );
  card.dataset.words = `${name} ${schema.description ?? ""} ${Object.keys(schema.properties ?? {}).join(" ")}`.toLowerCase();
  return card;
}

function codeCard(spec, code, fact) {
  const users = operationsOf(spec).filter(({ operation }) => operation["x-flowfabric"]?.refuses.includes(code));
  const summary = [
    el("span", { class: "status bad" }, String(fact.status)),
    el("span", { class: "code" }, code),
    el("span", { class: "said" }, inline(fact.message)),
  ];
  const card = folded({ class: "card", id: `code/${code}` }, summary, () =>
    el(
      "div",
      { class: "body" },
      el("p", {}, fact.retryable ? "Retryable: the same request may succeed later unchanged." : "Not retryable: the same request would be refused again."),
      users.length ? el("p", {}, "Refused with it: ", users.flatMap(({ operation }) => [el("a", { href: `#op/${operation.operationId}` }, operation.operationId), "  "])) : null,
    ),
  );
  card.dataset.words = `${code} ${fact.message}`.toLowerCase();
  return card;
}

function contents(title, id, links) {
  const list = el("details", { open: matchMedia("(min-width: 56rem)").matches }, el("summary", {}, title));
  list.append(...links.map(([text, target]) => el("a", { href: `#${target}` }, text)));
  list.dataset.section = id;
  return list;
}

function show(spec) {
  byId("version").textContent = spec.info.version;
  byId("top").replaceChildren(el("h2", {}, `${spec.info.title} API`), ...prose(spec.info.description));
  const entries = operationsOf(spec);
  for (const { name, description } of spec.tags) {
    const mine = entries.filter(({ operation }) => operation.tags.includes(name));
    if (!mine.length) continue;
    const section = el("section", { class: "concept", id: `concept/${name}` }, el("h2", {}, name), el("p", {}, inline(description.replaceAll("\n", " "))));
    section.append(...mine.map((entry) => operationCard(spec, entry)));
    byId("operations").append(section);
    byId("contents").append(contents(name, section.id, mine.map(({ operation }) => [operation.operationId, `op/${operation.operationId}`])));
  }
  const schemas = Object.entries(spec.components.schemas);
  byId("records").append(...schemas.map(([name, schema]) => recordCard(spec, name, schema)));
  const codes = Object.entries(spec["x-errors"] ?? {});
  byId("codes").append(...codes.map(([code, fact]) => codeCard(spec, code, fact)));
  byId("contents").append(el("a", { href: "#records" }, "Records"), el("a", { href: "#codes" }, "Refusals and errors"));
  byId("records").hidden = byId("codes").hidden = false;
}

function search() {
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  let any = false;
  for (const section of document.querySelectorAll("main section:not(.intro)")) {
    let found = 0;
    for (const card of section.querySelectorAll(":scope > .card")) {
      card.hidden = !words.every((word) => card.dataset.words.includes(word));
      found += card.hidden ? 0 : 1;
    }
    section.hidden = found === 0;
    any ||= found > 0;
  }
  byId("top").hidden = words.length > 0;
  byId("nothing").hidden = any;
}

function goToHash() {
  const card = byId(decodeURIComponent(location.hash.slice(1)));
  if (!card) return;
  if (card.hidden || card.parentElement?.hidden) {
    byId("search").value = "";
    search();
  }
  if (card.matches("details")) card.open = true;
  card.scrollIntoView();
}

async function start() {
  try {
    const response = await fetch("openapi.json");
    if (!response.ok) throw new Error(`status ${response.status}`);
    show(await response.json());
  } catch (error) {
    byId("top").replaceChildren(el("h2", {}, "FlowFabric API"), el("p", { class: "status bad" }, `openapi.json cannot be read: ${error.message}`));
    return;
  }
  byId("search").addEventListener("input", search);
  addEventListener("hashchange", goToHash);
  addEventListener("keydown", (event) => {
    if (event.key === "/" && !event.ctrlKey && !event.metaKey && !/^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) {
      event.preventDefault();
      byId("search").focus();
    }
  });
  goToHash();
}

start();
