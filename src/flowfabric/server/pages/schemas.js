// Showing JSON schemas as trees of fields, and making examples from them.

import { el, folded, inline } from "./dom.js";

const DEPTH_MAX = 6;

/** Return what a reference points to, and the last part of its name. */
export function resolve(spec, value) {
  if (!value?.$ref) return [value ?? {}, null];
  const found = value.$ref.slice(2).split("/").reduce((place, key) => place?.[key], spec);
  return [found ?? {}, value.$ref.split("/").pop()];
}

function options(schema) {
  return (schema.anyOf ?? schema.oneOf ?? []).filter((option) => option.type !== "null");
}

/** Name a type in a few words. */
export function typeName(spec, schema) {
  const [found, name] = resolve(spec, schema);
  if (name) return name;
  const nullable = (found.anyOf ?? []).some((option) => option.type === "null");
  const several = options(found);
  if (several.length) return several.map((option) => typeName(spec, option)).join(" or ") + (nullable ? " or null" : "");
  if (found.enum) return found.enum.map((word) => JSON.stringify(word)).join(" | ");
  if (found.const !== undefined) return JSON.stringify(found.const);
  if (found.allOf) return found.allOf.map((part) => typeName(spec, part)).join(" and ");
  const types = [found.type ?? "any"].flat();
  return types
    .map((type) => {
      if (type === "array") return `list of ${typeName(spec, found.items ?? {})}`;
      if (type === "object" && found.additionalProperties?.type) return `map to ${found.additionalProperties.type}`;
      if (type === "string" && found.contentEncoding) return found.contentEncoding;
      return type;
    })
    .join(" or ");
}

/** Return the records that a type is made of: itself, the members of a union, the items of a list. */
function records(spec, schema) {
  const [found, name] = resolve(spec, schema);
  if (found.properties || found.enum) return name || found.properties ? [[found, name]] : [];
  if (found.items) return records(spec, found.items);
  return [...options(found), ...(found.allOf ?? [])].flatMap((part) => records(spec, part));
}

function inside(spec, schema, depth) {
  return records(spec, schema).map(([found, name]) =>
    folded({}, name ?? "fields", () => [
      el("p", { class: "about" }, inline(found.description ?? "")),
      found.enum ? el("p", {}, inline(found.enum.map((word) => `\`${word}\``).join(" "))) : fields(spec, found, depth + 1),
    ]),
  );
}

function fields(spec, schema, depth) {
  const must = new Set(schema.required ?? []);
  const rows = Object.entries(schema.properties ?? {}).map(([name, property]) => {
    const [found] = resolve(spec, property);
    const about = property.description ?? (property.$ref ? found.description : "") ?? "";
    const byDefault = property.default === undefined ? "" : ` = ${JSON.stringify(property.default)}`;
    return el(
      "li",
      {},
      el("span", { class: "name" }, name),
      el("span", { class: "type" }, typeName(spec, property) + byDefault),
      must.has(name) ? el("span", { class: "must" }, "required") : null,
      about ? el("div", { class: "about" }, inline(about.replaceAll("\n", " "))) : null,
      depth < DEPTH_MAX ? inside(spec, property, depth) : [],
    );
  });
  return el("ul", { class: "fields" }, rows);
}

/** Show a type: the fields of a record, or the records of a union to open. */
export function schemaView(spec, schema) {
  const [found, name] = resolve(spec, schema);
  if (found.enum) return [el("p", {}, inline(found.enum.map((word) => `\`${word}\``).join(" ")))];
  if (found.properties) return [fields(spec, found, 0)];
  const parts = inside(spec, found, 0);
  return parts.length ? parts : [el("p", {}, el("code", {}, name ?? typeName(spec, found)))];
}

/** Make an example of a type: required fields, the fence, and payloads. */
export function sample(spec, schema, depth = 0) {
  const [found] = resolve(spec, schema);
  if (found.examples?.length) return found.examples[0];
  if (found.default !== undefined) return found.default;
  if (found.const !== undefined) return found.const;
  if (found.enum) return found.enum[0];
  const several = options(found);
  if (several.length) return sample(spec, several[0], depth);
  const type = [found.type].flat()[0];
  if (found.properties && depth < DEPTH_MAX) {
    const must = new Set(found.required ?? []);
    const made = {};
    for (const [name, property] of Object.entries(found.properties)) {
      const isPayload = `${name}_base64` in found.properties;
      const isProof = name === "fence" || ("lease_id" in found.properties && ["lease_epoch", "lease_id", "attempt_id"].includes(name));
      if (must.has(name) || isPayload || isProof) made[name] = isPayload ? { any: "JSON" } : sample(spec, property, depth + 1);
    }
    return made;
  }
  if (type === "array") return [sample(spec, found.items ?? {}, depth + 1)];
  if (type === "integer" || type === "number") return 1;
  if (type === "boolean") return false;
  if (type === "object") return {};
  return type === "string" ? "text" : null;
}
