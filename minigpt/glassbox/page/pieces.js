/* Pieces of words: a text parted as GPT-1's byte-pair encoding parts it, by the rules of the library `tokenizers`. */

// The library knows Unicode 8 or so: what came later, marks and punctuation too, it takes as it is.
const NEWER = new RegExp(
  "[" +
    String.raw`\u061d\u07fd\u0890-\u08e2\u09fd-\u09fe\u0a76\u0afa-\u0aff\u0b55\u0c04-\u0c3c\u0c77\u0c84\u0d00\u0d3b-\u0d3c` +
    String.raw`\u0d81\u0eba\u0ece\u180f-\u1886\u1abf-\u1aeb\u1b4e-\u1b4f\u1b7d-\u1b7f\u1df6-\u1dfb\u2e43-\u2e5d\ua82c\ua8c5` +
    String.raw`\ua8ff\ua9bd\u{105c9}-\u{105e4}\u{10d24}-\u{10d27}\u{10d69}-\u{10f89}\u{11070}-\u{11074}\u{110c2}-\u{110cd}` +
    String.raw`\u{111cf}\u{1123e}-\u{11241}\u{1133b}\u{11383}-\u{1145e}\u{11660}-\u{1166c}\u{116b9}\u{1182f}-\u{1183b}` +
    String.raw`\u{11938}-\u{11fff}\u{12ff1}-\u{1612f}\u{16d68}-\u{16d6f}\u{16e97}-\u{16e9a}\u{16f4f}\u{16fe2}-\u{16fe4}` +
    String.raw`\u{1cf00}-\u{1cf46}\u{1e000}-\u{1e6f5}\u{1e944}-\u{1e95f}\u{111c9}` +
    "]",
  "u",
);
const LEFT_OUT = /[\0\ufffd]|(?![\t\n\r])[\p{Cc}\p{Cf}\p{Co}]/u;
const ACCENT = /[\p{Mn}\u1734\u{1171e}]/u;
const PUNCTUATION = /[!-/:-@[-`{-~\p{P}\u166d]/u;
const CHINESE =
  /[\u4e00-\u9fff\u3400-\u4dbf\u{20000}-\u{2a6df}\u{2a700}-\u{2b73f}\u{2b740}-\u{2b81f}\u{2b920}-\u{2ceaf}\uf900-\ufaff\u{2f800}-\u{2fa1f}]/u;
const isNewer = (character) => NEWER.test(character);
const isPunctuation = (character) => character === "\u{111c9}" || (PUNCTUATION.test(character) && !isNewer(character));

const WORD_END = "</w>";

/** Pieces of words. `merges` are pairs in the order in which they are made; `added` pieces are found as they stand. */
class Pieces {
  constructor({ merges, added }, labels, unknown) {
    this.ranks = new Map(merges.map(([left, right], rank) => [`${left} ${right}`, rank]));
    this.idOf = new Map(labels.map((label, id) => [label, id]));
    this.unknown = unknown === null ? null : labels[unknown];
    const literal = added.map((piece) => piece.replaceAll(/[\\^$.*+?()[\]{}|]/g, "\\$&"));
    this.added = added.length ? new RegExp(`(${literal.sort((a, b) => b.length - a.length).join("|")})`, "u") : null;
  }

  /** The pieces of a text in order, each with the first and the last of its characters: `{id, first, last}`. */
  read(text) {
    const found = [];
    let start = 0;
    for (const [i, section] of (this.added ? text.split(this.added) : [text]).entries()) {
      const characters = Array.from(section);
      if (i % 2) found.push({ piece: section, first: start, last: start + characters.length - 1 });
      else for (const word of wordsOf(normalised(characters, start))) found.push(...this.merged(word));
      start += characters.length;
    }
    let last = -1;
    for (const it of found) last = it.last = Math.max(last, it.last);
    return found.map(({ piece, first, last }) => ({ id: this.idOf.get(piece), first, last }));
  }

  /** The pieces of a word: of all pairs that can be merged always the one of the lowest rank, the leftmost of equals. */
  merged(word) {
    const pieces = word
      .map(([character, i], at) => ({ piece: character + (at === word.length - 1 ? WORD_END : ""), first: i, last: i }))
      .map((it) => (this.idOf.has(it.piece) ? it : { ...it, piece: this.unknown }))
      .filter(({ piece }) => piece !== null);
    const rank = (i) => this.ranks.get(`${pieces[i].piece} ${pieces[i + 1]?.piece}`) ?? Infinity;
    const ranks = pieces.map((_, i) => rank(i));
    for (;;) {
      let best = 0;
      for (let i = 1; i < ranks.length; i++) if (ranks[i] < ranks[best]) best = i;
      if (!(ranks[best] < Infinity)) return pieces;
      const [left, right] = pieces.slice(best, best + 2);
      const first = Math.min(left.first, right.first),
        last = Math.max(left.last, right.last);
      pieces.splice(best, 2, { piece: left.piece + right.piece, first, last });
      ranks.splice(best, 1);
      for (let i = Math.max(0, best - 1); i <= best; i++) ranks[i] = rank(i);
    }
  }
}

/** Small letters without accents, each with the index of the character that it is from; Chinese ones between spaces. */
function normalised(characters, start = 0) {
  const found = [];
  for (const [i, character] of characters.entries()) {
    if (LEFT_OUT.test(character) && !isNewer(character)) continue;
    const whole = isNewer(character) ? [character] : Array.from(character.normalize("NFD"));
    const shown = /\p{White_Space}/u.test(character) ? [" "] : CHINESE.test(character) ? [" ", ...whole, " "] : whole;
    for (const part of shown) {
      let at = found.length;
      while (at && marksChange(found[at - 1][0], part)) at--;
      found.splice(at, 0, [part, start + i]);
    }
  }
  return found
    .filter(([character]) => !ACCENT.test(character) || isNewer(character))
    .flatMap(([character, i]) => Array.from(character.toLowerCase(), (it) => [it, i]));
}

/** Whether two marks of one letter stand in the other order in Unicode's normal form. */
const marksChange = (left, right) =>
  /\p{M}/u.test(right) && !isNewer(left) && !isNewer(right) && (left + right).normalize("NFD") !== left + right;

/** What stands between spaces, and each punctuation mark alone. */
function wordsOf(characters) {
  const words = [[]];
  for (const it of characters) {
    if (it[0] === " ") words.push([]);
    else if (isPunctuation(it[0])) words.push([it], []);
    else words.at(-1).push(it);
  }
  return words.filter((word) => word.length);
}

/** A piece as text: one that ends a word has a space behind it. */
const pieceText = (piece) => (piece.endsWith(WORD_END) ? piece.slice(0, -WORD_END.length) + " " : piece);

if (typeof module !== "undefined") module.exports = { Pieces };
