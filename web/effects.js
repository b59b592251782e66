/**
 * Animations on one canvas: balloons, confetti, hearts, fireworks, snow and a floating emoji.
 *
 *   const effects = new Effects(canvas, { onCalm: ({ kind, emoji, label }) => showABadge() });
 *   effects.play("balloons");
 *   effects.play("emoji", { emoji: "🎉", label: "from Ada" });
 *
 * Particles come from a bounded pool, look like sprites rendered beforehand, and move by time, not
 * by frame. The loop stops when nothing moves. With `prefers-reduced-motion` nothing is drawn and
 * `onCalm` is called instead. Fireworks want a dark page and say so with `onNight`. Lengths are CSS
 * pixels, times seconds, angles radians.
 *
 * SPDX-License-Identifier: Apache-2.0
 */

import { emojiSprite, makeSprites, TAU } from "./sprites.js";

const LIMITS = Object.freeze({ particles: 1500, bursts: 40, emojiSprites: 24, pixels: 5e6, ratio: 2 });

const between = (low, high) => low + Math.random() * (high - low);
const pick = (list) => list[Math.floor(Math.random() * list.length)];
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
/** 0 → 1 with a small overshoot: things that appear. */
const popIn = (t) => (t >= 1 ? 1 : 1 + 2.7 * (t - 1) ** 3 + 1.7 * (t - 1) ** 2);
/** 1, then down to 0 over the last `share` of a life. */
const fadeOut = (p, share) => clamp((1 - p.age / p.life) / share, 0, 1);

// --- kinds --------------------------------------------------------------------------------------
//
// A kind: `count` particles per burst, spread over `seconds`; `spawn(p, stage, burst)` sets one up,
// `move(p, dt, stage)` moves it and says whether it lives on, `draw(p, stage)` paints it.
// `stage` = {width, height, unit, sprites, ctx, put, emit}; `unit` scales everything to the screen.

const balloons = {
  count: 18,
  seconds: 1.6,
  spawn(p, { width, height, unit, sprites }) {
    p.depth = between(0.5, 1.1);
    p.sprite = pick(sprites.balloons);
    p.x = between(0.04, 0.96) * width;
    p.y = height + 90 * unit;
    p.vy = -between(0.2, 0.28) * Math.max(height, 600) * (0.45 + 0.6 * p.depth);
    p.life = 30;
  },
  move(p, dt, { unit }) {
    p.x += Math.cos(p.age * 1.3 + p.seed) * 26 * unit * dt;
    p.y += p.vy * (0.55 + 0.45 * Math.min(1, p.age)) * dt;
    p.angle = Math.sin(p.age * 1.3 + p.seed) * 0.13;
    return p.y > -170 * unit;
  },
  draw(p, { ctx, unit, put, ratio, dark }) {
    const size = p.depth * unit;
    const lag = Math.sin(p.age * 1.3 + p.seed - 0.9) * 16;
    put(p.sprite, p.x, p.y, p.angle, size, size, clamp(0.5 + p.depth * 0.6, 0, 1));
    ctx.setTransform(size * ratio, 0, 0, size * ratio, p.x * ratio, p.y * ratio);
    ctx.beginPath();
    ctx.moveTo(-Math.sin(p.angle) * 54, Math.cos(p.angle) * 54);
    ctx.bezierCurveTo(lag * 0.2, 84, lag - 9, 96, lag * 0.8, 134);
    ctx.strokeStyle = dark ? "rgba(255,255,255,.4)" : "rgba(40,30,50,.38)";
    ctx.lineWidth = 1.2;
    ctx.stroke();
  },
};

const confetti = {
  count: 190,
  seconds: 0.4,
  spawn(p, { width, height, unit, sprites }, burst) {
    const left = burst.emitted % 2 === 0;
    const angle = -Math.PI / 2 + (left ? 1 : -1) * between(0.12, 0.86);
    const speed = between(0.9, 2.5) * Math.max(height, 560);
    p.sprite = pick(sprites.papers);
    p.depth = between(0.7, 1.35) * unit;
    p.x = left ? -10 : width + 10;
    p.y = height * between(0.86, 0.96);
    p.vx = Math.cos(angle) * speed * clamp(width / height, 0.5, 1.4);
    p.vy = Math.sin(angle) * speed;
    p.spin = between(-5, 5);
    p.flip = between(6, 13);
    p.life = between(4, 6.5);
  },
  move(p, dt, { height, unit }) {
    const drag = Math.exp(-1.9 * dt);
    p.vx = p.vx * drag + Math.cos(p.age * 2.6 + p.seed) * 90 * unit * dt;
    p.vy = p.vy * drag + 470 * unit * dt;
    p.x += p.vx * dt;
    p.y += p.vy * dt;
    p.angle += p.spin * dt;
    return p.y < height + 30;
  },
  draw(p, { put }) {
    const turn = Math.cos(p.age * p.flip + p.seed);
    put(turn > 0 ? p.sprite.front : p.sprite.back, p.x, p.y, p.angle, p.depth, p.depth * turn, fadeOut(p, 0.15));
  },
};

const hearts = {
  count: 38,
  seconds: 2,
  spawn(p, { width, height, unit, sprites }) {
    p.sprite = pick(sprites.hearts);
    p.depth = between(0.35, 1) ** 1.4 * unit;
    p.x = width * (0.5 + between(-0.42, 0.42));
    p.y = height + 20 * unit;
    p.life = between(3, 4.6);
    p.vy = -(height * between(0.65, 1.05)) / p.life;
    p.spin = between(18, 52) * unit; // how far it sways
  },
  move(p, dt) {
    const calm = 1.5 - p.age / p.life; // rises fast, arrives slowly
    p.y += p.vy * calm * dt;
    p.x += Math.cos(p.age * 2.1 + p.seed) * p.spin * dt;
    p.angle = Math.sin(p.age * 2.1 + p.seed) * 0.28;
    return true;
  },
  draw(p, { put }) {
    const beat = 1 + 0.07 * Math.sin(p.age * 9 + p.seed);
    const size = p.depth * popIn(p.age / 0.35) * beat;
    put(p.sprite, p.x, p.y, p.angle, size, size, fadeOut(p, 0.35));
  },
};

const emoji = {
  count: 16,
  seconds: 1.5,
  spawn(p, { width, height, unit }, burst) {
    hearts.spawn(p, { width, height, unit, sprites: { hearts: [burst.sprite] } });
    p.depth = between(0.45, 1) * unit;
  },
  move: hearts.move,
  draw(p, { put }) {
    const size = p.depth * popIn(p.age / 0.4);
    put(p.sprite, p.x, p.y, p.angle, size, size, fadeOut(p, 0.3));
  },
};

const snow = {
  count: 230,
  seconds: 8,
  spawn(p, { width, unit, sprites }) {
    p.depth = between(0.25, 1);
    const crystal = p.depth > 0.62;
    p.sprite = sprites.flakes[crystal ? 0 : 1];
    p.spin = crystal ? between(-0.9, 0.9) : 0;
    p.x = between(-0.05, 1.05) * width;
    p.y = -20;
    p.vy = (40 + 105 * p.depth) * unit;
    p.life = 40;
  },
  move(p, dt, { height, unit }) {
    p.x += Math.sin(p.age * 0.9 + p.seed) * 30 * p.depth * unit * dt;
    p.y += p.vy * dt;
    p.angle += p.spin * dt;
    return p.y < height + 20;
  },
  draw(p, { put, unit, height }) {
    const size = (0.35 + 0.75 * p.depth) * unit;
    const melt = clamp((height - p.y) / (height * 0.14), 0, 1);
    put(p.sprite, p.x, p.y, p.angle, size, size, melt * (0.35 + 0.65 * p.depth));
  },
};

const ROCKET_SECONDS = 0.85;

/** A rocket; where it ends it emits its sparks and one flash. */
const fireworks = {
  count: 7,
  seconds: 3.2,
  night: true,
  spawn(p, { width, height, sprites }) {
    const top = height * between(0.14, 0.44);
    p.sprite = pick(sprites.sparks);
    p.x = width * between(0.15, 0.85);
    p.y = height + 10;
    p.life = ROCKET_SECONDS;
    p.vy = ((top - p.y) / ROCKET_SECONDS) * 1.5;
    p.vx = between(-0.04, 0.04) * width;
  },
  move(p, dt, stage) {
    p.vy *= Math.exp(-0.95 * dt);
    p.x += p.vx * dt;
    p.y += p.vy * dt;
    if (Math.random() < dt * 60) stage.emit(ember, p);
    if (p.age < p.life) return true;
    explode(p, stage);
    return false;
  },
  draw(p, { put, unit }) {
    put(p.sprite, p.x, p.y, 0, 0.9 * unit, 1.9 * unit, 1, true);
  },
};

/** What a rocket loses on its way up. */
const ember = {
  night: true,
  spawn(p, { unit, sprites }, from) {
    p.sprite = sprites.sparks.at(-1);
    p.x = from.x + between(-2, 2);
    p.y = from.y;
    p.vy = between(20, 70) * unit;
    p.life = between(0.25, 0.5);
  },
  move(p, dt) {
    p.y += p.vy * dt;
    return true;
  },
  draw(p, { put, unit }) {
    put(p.sprite, p.x, p.y, 0, 0.4 * unit, 0.55 * unit, fadeOut(p, 0.9), true);
  },
};

const spark = {
  night: true,
  spawn(p, { unit }, { from, angle, speed, sprite: look, life }) {
    p.sprite = look;
    p.x = from.x;
    p.y = from.y;
    p.vx = Math.cos(angle) * speed * unit;
    p.vy = Math.sin(angle) * speed * unit;
    p.life = life;
  },
  move(p, dt, { unit }) {
    const drag = Math.exp(-2.1 * dt);
    p.vx *= drag;
    p.vy = p.vy * drag + 90 * unit * dt;
    p.x += p.vx * dt;
    p.y += p.vy * dt;
    return true;
  },
  draw(p, { put, unit }) {
    const stretch = 0.5 + Math.hypot(p.vx, p.vy) / 170 / unit;
    const twinkle = p.age > p.life * 0.55 ? 0.55 + 0.45 * Math.sin(p.age * 38 + p.seed) : 1;
    put(p.sprite, p.x, p.y, Math.atan2(p.vy, p.vx), stretch * unit, 0.55 * unit, fadeOut(p, 0.5) * twinkle, true);
  },
};

const flash = {
  night: true,
  spawn(p, stage, from) {
    p.sprite = from.sprite;
    p.x = from.x;
    p.y = from.y;
    p.life = 0.28;
  },
  move: () => true,
  draw(p, { put, unit }) {
    const size = (4 + 14 * (p.age / p.life)) * unit;
    put(p.sprite, p.x, p.y, 0, size, size, 0.55 * fadeOut(p, 1), true);
  },
};

function explode(from, { emit, sprites }) {
  const second = pick(sprites.sparks);
  const shape = pick(["ball", "ball", "ball", "ring", "willow"]);
  const count = shape === "ring" ? 64 : 110;
  emit(flash, from);
  for (let i = 0; i < count; i += 1) {
    const angle = (i / count) * TAU + between(-0.05, 0.05);
    const reach = shape === "ring" ? between(0.94, 1) : Math.sqrt(Math.random());
    const look = shape === "willow" ? sprites.sparks.at(-1) : i % 3 === 0 ? second : from.sprite;
    const life = shape === "willow" ? between(1.6, 2.6) : between(0.9, 1.7);
    emit(spark, { from, angle, speed: reach * 520, sprite: look, life });
  }
}

const KINDS = { balloons, confetti, hearts, fireworks, snow, emoji };
/** The names `play` knows. */
export const ANIMATIONS = Object.freeze(Object.keys(KINDS));

// --- the engine ---------------------------------------------------------------------------------

/** Plays animations on a canvas that covers the window. */
export class Effects {
  #canvas;
  #ctx;
  #onCalm;
  #onNight;
  #reduced = matchMedia("(prefers-reduced-motion: reduce)");
  #scheme = matchMedia("(prefers-color-scheme: dark)");
  #particles = []; // alive
  #pool = []; // dead, to be used again
  #bursts = [];
  #emojis = new Map(); // text → sprite, oldest first
  #stage = null;
  #request = 0;
  #last = 0;
  #isNight = false; // whether the page was asked to be dark
  #dusk = 0; // how far the canvas has darkened too, 0 … 1
  #frameTime = 1 / 60; // smoothed
  #counts = { drawn: 0, frames: 0, calm: 0, dropped: 0 };
  #played = Object.fromEntries(ANIMATIONS.map((kind) => [kind, 0]));

  /**
   * `onCalm({kind, emoji, label})` is called instead of drawing when motion is not wanted,
   * `onNight(true)` when the page should turn dark, and `onNight(false)` when it may turn back.
   */
  constructor(canvas, { onCalm = () => {}, onNight = () => {} } = {}) {
    this.#canvas = canvas;
    this.#ctx = canvas.getContext("2d");
    this.#onCalm = onCalm;
    this.#onNight = onNight;
    addEventListener("resize", () => this.#fit());
    this.#scheme.addEventListener("change", () => this.#fit());
    this.#reduced.addEventListener("change", () => this.clear());
    this.#fit();
  }

  /**
   * Play `kind`; returns false when it is unknown, or nothing could be seen (a hidden page, too
   * many at once). `emoji` is for the kind of that name, `label` is passed on to `onCalm`.
   */
  play(kind, { emoji: text = "🎉", label = "" } = {}) {
    if (!Object.hasOwn(KINDS, kind) || document.hidden) return false;
    this.#played[kind] += 1;
    if (this.#reduced.matches) {
      this.#counts.calm += 1;
      this.#onCalm({ kind, emoji: text, label });
      return true;
    }
    if (this.#bursts.length >= LIMITS.bursts) {
      this.#counts.dropped += 1;
      return false;
    }
    const look = kind === "emoji" ? this.#emojiSprite(text) : null;
    const { count, seconds } = KINDS[kind];
    this.#bursts.push({ kind: KINDS[kind], name: kind, sprite: look, age: 0, emitted: 0, count, seconds });
    if (this.#request === 0) this.#start();
    return true;
  }

  /** Take everything off the canvas. */
  clear() {
    this.#bursts.length = 0;
    this.#pool.push(...this.#particles.splice(0));
    this.#stop();
  }

  /**
   * What is going on: `particles` alive, `running` ({kind: particles alive or still to come}),
   * and since the start `drawn` (sprites painted), `frames`, `played` ({kind: times}), `calm`
   * (shown without motion) and `dropped` (bursts and particles beyond the bounds).
   */
  stats() {
    const running = {};
    for (const { name } of this.#particles) running[name] = (running[name] ?? 0) + 1;
    for (const { name, count, emitted } of this.#bursts) running[name] = (running[name] ?? 0) + count - emitted;
    return { particles: this.#particles.length, running, ...this.#counts, played: { ...this.#played } };
  }

  /** Fit the canvas to the window; very large or dense screens get fewer pixels, not fewer frames. */
  #fit() {
    const width = innerWidth;
    const height = innerHeight;
    const ratio = Math.min(devicePixelRatio || 1, LIMITS.ratio, Math.sqrt(LIMITS.pixels / (width * height)));
    const dark = this.#scheme.matches;
    this.#canvas.width = Math.round(width * ratio);
    this.#canvas.height = Math.round(height * ratio);
    const sameLook = this.#stage?.ratio === ratio && this.#stage?.dark === dark;
    const sprites = sameLook ? this.#stage.sprites : makeSprites(ratio, dark);
    if (!sameLook) this.#emojis.clear();
    this.#stage = {
      width, height, ratio, dark, sprites, ctx: this.#ctx,
      unit: clamp(Math.min(width, height) / 720, 0.62, 1.25),
      put: this.#put.bind(this),
      emit: (kind, from) => this.#emit(kind, "fireworks", from),
    };
  }

  #emojiSprite(text) {
    const known = this.#emojis.get(text);
    if (known) return known;
    const made = emojiSprite(text, this.#stage.ratio, this.#stage.dark);
    this.#emojis.set(text, made);
    if (this.#emojis.size > LIMITS.emojiSprites) this.#emojis.delete(this.#emojis.keys().next().value);
    return made;
  }

  #start() {
    this.#last = performance.now();
    this.#request = requestAnimationFrame((now) => this.#frame(now));
  }

  #stop() {
    cancelAnimationFrame(this.#request);
    this.#request = 0;
    this.#dusk = 0;
    this.#turnNight(false);
    this.#erase();
  }

  #erase() {
    this.#ctx.setTransform(1, 0, 0, 1, 0, 0);
    this.#ctx.globalAlpha = 1;
    this.#ctx.globalCompositeOperation = "source-over";
    this.#ctx.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
  }

  #frame(now) {
    const elapsed = Math.max(0, (now - this.#last) / 1000);
    const dt = Math.min(elapsed, 0.05); // after a pause nothing may jump
    this.#last = now;
    this.#frameTime += (Math.min(elapsed, 0.1) - this.#frameTime) * 0.05;
    this.#counts.frames += 1;
    this.#release(dt);
    this.#move(dt);
    this.#erase();
    this.#drawDusk(dt);
    for (const p of this.#particles) p.kind.draw(p, this.#stage);
    const idle = this.#particles.length === 0 && this.#bursts.length === 0 && this.#dusk < 0.01;
    if (idle) this.#stop();
    else this.#request = requestAnimationFrame((next) => this.#frame(next));
  }

  /** Let out what the bursts owe by now; a machine that cannot keep up gets fewer particles. */
  #release(dt) {
    const quality = clamp(0.024 / this.#frameTime, 0.35, 1);
    for (const burst of this.#bursts) {
      burst.age += dt;
      const due = Math.ceil(burst.count * Math.min(1, burst.age / burst.seconds));
      for (; burst.emitted < due; burst.emitted += 1) {
        if (burst.count < 20 || Math.random() < quality) this.#emit(burst.kind, burst.name, burst);
      }
    }
    this.#bursts = this.#bursts.filter(({ emitted, count }) => emitted < count);
  }

  #emit(kind, name, from) {
    if (this.#particles.length >= LIMITS.particles) {
      this.#counts.dropped += 1;
      return;
    }
    const p = this.#pool.pop() ?? {};
    Object.assign(p, { kind, name, sprite: null, x: 0, y: 0, vx: 0, vy: 0, angle: 0, spin: 0, flip: 0, depth: 1, age: 0, life: 1 });
    p.seed = Math.random() * TAU;
    kind.spawn(p, this.#stage, from);
    this.#particles.push(p);
  }

  /** Move all and close the ranks, keeping the order in which they are painted. */
  #move(dt) {
    const all = this.#particles;
    const count = all.length; // what is emitted on the way moves from the next frame on
    let kept = 0;
    for (let i = 0; i < count; i += 1) {
      const p = all[i];
      p.age += dt;
      const alive = p.kind.move(p, dt, this.#stage) && p.age < p.life;
      if (alive) all[kept++] = p;
      else this.#pool.push(p);
    }
    for (let i = count; i < all.length; i += 1) all[kept++] = all[i];
    all.length = kept;
  }

  /** Fireworks want the night. The canvas darkens a little only: what is under it stays readable. */
  #drawDusk(dt) {
    const night = this.#bursts.some(({ kind }) => kind.night) || this.#particles.some(({ kind }) => kind.night);
    this.#turnNight(night);
    this.#dusk += (Number(night) - this.#dusk) * Math.min(1, dt * 3.2);
    if (this.#dusk < 0.01) return;
    this.#ctx.globalAlpha = this.#dusk * 0.3;
    this.#ctx.fillStyle = "#0b0a1a";
    this.#ctx.fillRect(0, 0, this.#canvas.width, this.#canvas.height);
  }

  #turnNight(on) {
    if (on === this.#isNight) return;
    this.#isNight = on;
    this.#onNight(on);
  }

  #put(look, x, y, angle, scaleX, scaleY, alpha, glow = false) {
    const { ratio } = this.#stage;
    const ctx = this.#ctx;
    const cos = Math.cos(angle) * ratio;
    const sin = Math.sin(angle) * ratio;
    ctx.globalAlpha = alpha;
    ctx.globalCompositeOperation = glow ? "lighter" : "source-over"; // what glows comes with the night
    ctx.setTransform(cos * scaleX, sin * scaleX, -sin * scaleY, cos * scaleY, x * ratio, y * ratio);
    ctx.drawImage(look.canvas, -look.width / 2, -look.height / 2, look.width, look.height);
    this.#counts.drawn += 1;
  }
}
