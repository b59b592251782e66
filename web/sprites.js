/**
 * The looks of the animations' particles, painted once and then stamped: canvases of CSS pixels.
 *
 * SPDX-License-Identifier: Apache-2.0
 */

const COLORS = ["#ff5a5f", "#ffb02e", "#1fb999", "#3b93f7", "#8a6cf6", "#ff6fae"];
export const TAU = Math.PI * 2;

/** Return a canvas of `width` × `height` CSS pixels that `paint(ctx)` drew on, origin in its middle. */
function sprite(width, height, ratio, paint) {
  const canvas = document.createElement("canvas");
  canvas.width = Math.ceil(width * ratio);
  canvas.height = Math.ceil(height * ratio);
  const ctx = canvas.getContext("2d");
  ctx.scale(ratio, ratio);
  ctx.translate(width / 2, height / 2);
  paint(ctx);
  return { canvas, width, height };
}

/** Mix a #rrggbb colour with white (amount > 0) or black (amount < 0). */
function shade(color, amount) {
  const target = amount > 0 ? 255 : 0;
  const mix = (i) => Math.round(parseInt(color.slice(i, i + 2), 16) * (1 - Math.abs(amount)) + target * Math.abs(amount));
  return `rgb(${mix(1)} ${mix(3)} ${mix(5)})`;
}

function radial(ctx, x, y, radius, ...stops) {
  const gradient = ctx.createRadialGradient(x, y, 0, x, y, radius);
  stops.forEach((color, i) => gradient.addColorStop(i / (stops.length - 1), color));
  return gradient;
}

function paintBalloon(ctx, color) {
  ctx.beginPath(); // the knot, under the body
  ctx.moveTo(-6, 53);
  ctx.quadraticCurveTo(0, 40, 6, 53);
  ctx.quadraticCurveTo(0, 56, -6, 53);
  ctx.fillStyle = shade(color, -0.3);
  ctx.fill();
  ctx.beginPath();
  ctx.moveTo(0, 46);
  ctx.bezierCurveTo(-24, 32, -38, 8, -38, -14);
  ctx.bezierCurveTo(-38, -38, -21, -54, 0, -54);
  ctx.bezierCurveTo(21, -54, 38, -38, 38, -14);
  ctx.bezierCurveTo(38, 8, 24, 32, 0, 46);
  ctx.fillStyle = radial(ctx, -12, -26, 84, shade(color, 0.42), color, shade(color, -0.12), shade(color, -0.34));
  ctx.fill();
  ctx.save(); // the window it reflects, and light through the far side
  ctx.clip();
  ctx.fillStyle = radial(ctx, 16, 22, 34, "rgba(255,255,255,.26)", "rgba(255,255,255,0)");
  ctx.fillRect(-40, -60, 80, 120);
  ctx.restore();
  ctx.rotate(0.5);
  ctx.beginPath();
  ctx.ellipse(-30, -24, 6, 14, 0, 0, TAU);
  ctx.fillStyle = "rgba(255,255,255,.62)";
  ctx.fill();
}

function paintHeart(ctx, color) {
  ctx.beginPath();
  ctx.moveTo(0, 27);
  ctx.bezierCurveTo(-40, 2, -33, -29, -14, -29);
  ctx.bezierCurveTo(-5, -29, 0, -22, 0, -16);
  ctx.bezierCurveTo(0, -22, 5, -29, 14, -29);
  ctx.bezierCurveTo(33, -29, 40, 2, 0, 27);
  ctx.fillStyle = radial(ctx, -9, -14, 50, shade(color, 0.4), color, shade(color, -0.25));
  ctx.fill();
  ctx.rotate(-0.7);
  ctx.beginPath();
  ctx.ellipse(-2, -25, 7, 3.4, 0, 0, TAU);
  ctx.fillStyle = "rgba(255,255,255,.6)";
  ctx.fill();
}

function paintFlake(ctx, color) {
  ctx.strokeStyle = color;
  ctx.lineWidth = 1.8;
  ctx.lineCap = "round";
  for (let arm = 0; arm < 6; arm += 1) {
    ctx.rotate(TAU / 6);
    ctx.beginPath();
    ctx.moveTo(0, 0);
    ctx.lineTo(0, -13);
    for (const [y, reach] of [[-5, 3.2], [-9, 2.6]]) {
      ctx.moveTo(-reach, y - reach);
      ctx.lineTo(0, y);
      ctx.lineTo(reach, y - reach);
    }
    ctx.stroke();
  }
}

function paintPaper(ctx, color, shape) {
  ctx.fillStyle = color;
  ctx.strokeStyle = color;
  ctx.beginPath();
  if (shape === "disc") ctx.arc(0, 0, 5, 0, TAU);
  else if (shape === "strip") ctx.rect(-2.2, -9, 4.4, 18);
  else ctx.rect(-4.5, -6, 9, 12);
  ctx.fill();
}

/** The sprite of one emoji. */
export const emojiSprite = (text, ratio, dark) => sprite(84, 84, ratio, (ctx) => {
  ctx.font = "60px 'Apple Color Emoji', 'Segoe UI Emoji', 'Noto Color Emoji', sans-serif";
  ctx.textAlign = "center";
  ctx.textBaseline = "middle";
  ctx.fillStyle = dark ? "#fff" : "#1d1a26"; // for what turns out to be a letter
  ctx.fillText(text, 0, 4, 80);
});

/** Every sprite but the emojis, for one pixel ratio and colour scheme. */
export function makeSprites(ratio, dark) {
  const snow = dark ? "rgba(255,255,255,.95)" : "rgba(118,166,222,.92)";
  const soft = dark ? "rgba(255,255,255,0)" : "rgba(118,166,222,0)";
  const paper = (color, shape) => ({
    front: sprite(12, 20, ratio, (ctx) => paintPaper(ctx, color, shape)),
    back: sprite(12, 20, ratio, (ctx) => paintPaper(ctx, shade(color, -0.28), shape)),
  });
  const spark = (color) => sprite(32, 32, ratio, (ctx) => {
    ctx.fillStyle = radial(ctx, 0, 0, 16, `${color}cc`, `${color}44`, `${color}16`, `${color}00`);
    ctx.fillRect(-16, -16, 32, 32); // the glow
    ctx.fillStyle = radial(ctx, 0, 0, 5.5, "#fff", "#fff", color, `${color}00`);
    ctx.fillRect(-6, -6, 12, 12); // the ember in it
  });
  return {
    balloons: COLORS.map((color) => sprite(84, 124, ratio, (ctx) => paintBalloon(ctx, color))),
    hearts: ["#ff4d6d", "#ff6fae", "#e8384f", "#ff8a7a"].map((color) => sprite(72, 72, ratio, (ctx) => paintHeart(ctx, color))),
    papers: COLORS.flatMap((color) => ["rect", "rect", "disc", "strip"].map((shape) => paper(color, shape))),
    sparks: [...COLORS, "#ffd98a"].map(spark),
    flakes: [
      sprite(32, 32, ratio, (ctx) => paintFlake(ctx, snow)),
      sprite(16, 16, ratio, (ctx) => {
        ctx.fillStyle = radial(ctx, 0, 0, 8, snow, snow, soft);
        ctx.fillRect(-8, -8, 16, 16);
      }),
    ],
  };
}
