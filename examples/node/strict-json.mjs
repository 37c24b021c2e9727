// Reads JSON as docs/signed-spans.md, section 5.4, asks: one spelling, each member once, no number beyond a double's range.
// JSON.parse takes a member twice, half a surrogate pair and 1e400. Objects become Maps: a member may have any name.

export class Malformed extends Error {}

const LEVELS = 1000;
const SPACE = /[ \t\n\r]*/y;
const NUMBER = /-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?/y;
const STRING = /"[^"\\\x00-\x1f]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*)*"/y;
const WORD = /true|false|null/y;

/** Returns the text of bytes that are UTF-8, without a byte order mark. */
export function decode(bytes) {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw new Malformed("it is not UTF-8");
  }
}

/** Returns the value of a JSON text. */
export function parse(text) {
  let at = 0;

  const fail = (what) => {
    throw new Malformed(`${what} at character ${at + 1}`);
  };
  const token = (pattern) => {
    pattern.lastIndex = at;
    const found = pattern.exec(text);
    if (found) at = pattern.lastIndex;
    return found?.[0];
  };
  const punctuation = (character) => {
    token(SPACE);
    const found = text[at] === character;
    if (found) at += 1;
    return found;
  };

  function string() {
    token(SPACE);
    const found = JSON.parse(token(STRING) ?? fail("no string"));
    return found.isWellFormed() ? found : fail("half a surrogate pair");
  }

  function number(digits) {
    const found = Number(digits);
    return Number.isFinite(found) ? found : fail("a number beyond the range of doubles");
  }

  function array(level) {
    const found = [];
    if (punctuation("]")) return found;
    do found.push(value(level)); while (punctuation(","));
    return punctuation("]") ? found : fail("no end of an array");
  }

  function object(level) {
    const found = new Map();
    if (punctuation("}")) return found;
    do {
      const name = string();
      if (found.has(name)) fail("a member twice");
      if (!punctuation(":")) fail("no colon");
      found.set(name, value(level));
    } while (punctuation(","));
    return punctuation("}") ? found : fail("no end of an object");
  }

  function value(level) {
    if (level > LEVELS) fail("too many levels");
    if (punctuation("{")) return object(level + 1);
    if (punctuation("[")) return array(level + 1);
    if (text[at] === '"') return string();
    const digits = token(NUMBER);
    return digits ? number(digits) : JSON.parse(token(WORD) ?? fail("no value"));
  }

  const found = value(1);
  token(SPACE);
  return at === text.length ? found : fail("more than one value");
}
