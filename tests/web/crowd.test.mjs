/** Many calls: the pace lets their questions wait for up to a minute, and still each one is answered. */
import assert from "node:assert/strict";
import { test } from "node:test";

import { TIMING } from "../../web/relay.js";
import { FakeRelay, settle, setUp, welcome, WITHIN } from "./fakes.mjs";

const BURST = 80;
const PER_SECOND = 16;

/** How long the pace needs for `count` commands, and a moment. */
const paced = (count) => (Math.max(0, count - BURST) / PER_SECOND) * 1000 + 100;

/** A world with `count` calls and what each has heard, logged in; `server` answers what is asked, if there is one. */
async function crowd(count, { server, ...options } = {}) {
  const world = setUp(options);
  const calls = Array.from({ length: count }, (_, n) => world.relay.watch(`default:${n}`));
  const heard = new Map(calls.map(({ cid }) => [cid, []]));
  const gaps = [];
  const moves = [];
  for (const call of calls) {
    call.on("event", ({ offset }) => heard.get(call.cid).push(offset));
    call.on("gap", (gap) => gaps.push(gap));
  }
  world.relay.on("moved", () => moves.push(world.clock.now()));
  await settle();
  const [first] = world.sockets;
  server?.serve(first);
  first.accept();
  return { ...world, calls, heard, gaps, moves, first };
}

const watching = (calls) => calls.filter(({ state }) => state === "watching").length;

/** Publish one event for every call, in shares over `ms`. */
async function publishOver(ms, server, { calls, clock }) {
  for (let n = 0; n < calls.length; n += 1) {
    if (n % 100 === 0) await clock.advance(ms / Math.ceil(calls.length / 100));
    server.publish(calls[n].cid);
  }
}

test("a thousand calls are all watching after the time that the pace needs, each asked for once", async () => {
  const { calls, clock, first } = await crowd(1000, { server: new FakeRelay() });
  await clock.advance(paced(1000));
  assert.equal(watching(calls), 1000);
  assert.equal(first.of("call.watch").length, 1000);
});

test("what is sent takes turns with the questions of a thousand calls, and keeps its order", async () => {
  const server = new FakeRelay();
  const { calls, clock, first } = await crowd(1000, { server });
  const before = first.of("call.watch").length;
  const sending = [1, 2, 3].map((n) => calls[0].send({ n }));
  await clock.advance(6 * (1000 / PER_SECOND));
  assert.deepEqual(first.of("call.send").map(({ custom }) => custom.n), [1, 2, 3]);
  assert.ok(first.of("call.watch").length >= before + 2, "they go on meanwhile");
  first.of("call.send").forEach((frame, n) => first.sent(frame, { epoch: "e1", offset: n + 1 }));
  await Promise.all(sending);
  await clock.advance(paced(1000));
  assert.equal(watching(calls), 1000);
});

for (const [within, how] of [[WITHIN, "longer than there is"], [120_000, "no longer than there is"]]) {
  test(`a move of a thousand calls that takes ${how} loses nothing and tells nothing twice`, async () => {
    const server = new FakeRelay();
    const world = await crowd(1000, { server });
    const { calls, clock, first, sockets, states, heard, gaps, moves } = world;
    await clock.advance(paced(1000));
    await publishOver(1_000, server, world);
    world.world.random = 0.01;
    const deadline = clock.now() + Math.min(within, TIMING.move);
    first.say({ type: "connection.draining", reconnect_within_ms: within });
    await clock.advance(1_000);
    server.serve(sockets[1]);
    welcome(sockets[1]);
    for (let round = 0; round < 20; round += 1) await publishOver(3_000, server, world);
    assert.equal(watching(calls), 1000);
    assert.deepEqual([first.closed, sockets.length, moves.length, states.at(-1).state], [true, 2, 1, "open"]);
    assert.equal(states.length, 2, "open all the time");
    assert.equal(moves[0] === deadline, within === WITHIN);
    const all = Array.from({ length: 21 }, (_, n) => n + 1);
    for (const offsets of heard.values()) assert.deepEqual(offsets, all);
    assert.deepEqual(gaps, []);
  });
}

test("a second socket that fails with most calls still unasked costs nothing but time", async () => {
  const server = new FakeRelay();
  const world = await crowd(300, { server });
  const { calls, clock, first, sockets, heard, gaps, moves } = world;
  await clock.advance(paced(300));
  first.say({ type: "connection.draining", reconnect_within_ms: WITHIN });
  await clock.advance(WITHIN / 4);
  server.serve(sockets[1]);
  welcome(sockets[1]);
  await publishOver(1_000, server, world);
  sockets[1].cut();
  await publishOver(TIMING.backoffBase / 2, server, world);
  server.serve(sockets[2]);
  welcome(sockets[2]);
  await publishOver(paced(300) + WITHIN, server, world);
  assert.deepEqual([watching(calls), first.closed, sockets.length, moves.length], [300, true, 3, 1]);
  for (const offsets of heard.values()) assert.deepEqual(offsets, [1, 2, 3]);
  assert.deepEqual(gaps, []);
});

test("a second socket that has not let us in when the time is over is left, not moved to", async () => {
  const { clock, first, sockets, moves, relay } = await crowd(1);
  first.watching();
  first.say({ type: "connection.draining", reconnect_within_ms: WITHIN });
  await clock.advance(WITHIN);
  assert.deepEqual([sockets.length, sockets[1].closed, first.closed, moves.length], [2, true, false, 0]);
  assert.equal(relay.state, "open");
});

test("an answer has its time from the moment that its question is written", async () => {
  const deaf = `default:${BURST + 5 * PER_SECOND - 1}`; // written after 5 s
  const server = new FakeRelay({ deaf });
  const { clock, first } = await crowd(BURST + 5 * PER_SECOND, { server });
  const asked = () => first.of("call.watch").filter(({ call_cid }) => call_cid === deaf).length;
  await clock.advance(5_000);
  assert.equal(asked(), 1);
  await clock.advance(TIMING.command - 100);
  assert.equal(asked(), 1);
  await clock.advance(100 + TIMING.backoffBase);
  assert.equal(asked(), 2);
});

test("a question says from where at the moment that it is written", async () => {
  const server = new FakeRelay();
  const world = await crowd(100, { server });
  const { clock, first, sockets } = world;
  await clock.advance(paced(100));
  first.say({ type: "connection.draining", reconnect_within_ms: WITHIN });
  await clock.advance(WITHIN / 4);
  welcome(sockets[1]);
  await publishOver(0, server, world);
  await clock.advance(1_000);
  assert.equal(sockets[1].of("call.watch")[BURST].since.offset, 1);
});

test("what is asked for on the second socket is not asked for on the first any more, and costs it nothing", async () => {
  const { clock, first, sockets, relay } = await crowd(500);
  await clock.advance(1_000);
  first.say({ type: "connection.draining", reconnect_within_ms: WITHIN });
  await clock.advance(WITHIN / 4);
  welcome(sockets[1]);
  const before = first.of("call.watch").length;
  relay.send("default:0", { n: 1 }).catch(() => {});
  await clock.advance(1_000);
  assert.equal(first.of("call.watch").length, before);
  assert.equal(first.of("call.send").length, 1);
  relay.close();
});

test("a question that was never written ends with its socket", async () => {
  const world = await crowd(200);
  const { relay, clock, first, states } = world;
  const renewing = relay.refreshToken("t2");
  assert.equal(first.of("token.refresh").length, 0);
  first.cut();
  await renewing;
  await clock.advance(states.at(-1).retryIn);
  const [, second] = world.sockets;
  second.accept();
  await clock.advance(paced(200));
  assert.equal(second.of("call.watch").length, 200);
  assert.equal(second.of("token.refresh").length, 0);
  relay.close();
  assert.equal(clock.armed, 0);
});
