/** Moving to another process before this one ends. */
import assert from "node:assert/strict";
import { test } from "node:test";

import { TIMING } from "../../web/relay.js";
import { CID, movedHalf, moving, movingIn, reconnect, settle, setUp, setUpWatching, welcome, WITHIN } from "./fakes.mjs";

test("told that its process stops, it opens a second socket at a random moment of the first half", async () => {
  const { clock, sockets } = await setUpWatching();
  sockets[0].say({ type: "connection.draining", reconnect_within_ms: WITHIN });
  await clock.advance(WITHIN / 4 - 1);
  assert.equal(sockets.length, 1);
  await clock.advance(1);
  assert.equal(sockets.length, 2);
  assert.equal(sockets[0].closed, false);
});

test("it watches there from its position, and only then leaves the first socket", async () => {
  const { first, second, relay, call, states, moves } = await moving();
  first.event(1);
  welcome(second);
  assert.deepEqual(second.last("call.watch").since, { epoch: "e1", offset: 1 });
  assert.equal(first.closed, false);
  second.watching({ offset: 1, recovered: true });
  assert.equal(first.closed, true);
  assert.equal(relay.connectionId, "c2");
  assert.deepEqual(moves, [{ connectionId: "c2" }]);
  assert.equal(call.state, "watching");
  assert.equal(states.at(-1).state, "open");
  assert.equal(states.length, 2, "nobody was told of a change, for there was none");
});

test("what both sockets deliver is seen once, in order, and is not called missed", async () => {
  const { first, second, seen, recovered, gaps } = await movingIn();
  first.event(1);
  first.event(2);
  second.watching({ offset: 1, recovered: true });
  second.event(1);
  first.event(3); // a late frame of the socket that is being left
  second.event(2);
  second.event(3);
  second.event(4);
  assert.deepEqual(seen, [1, 2, 3, 4].map((n) => ({ n, missed: false })));
  assert.deepEqual(recovered, []);
  assert.deepEqual(gaps, []);
});

test("a volatile event comes from one socket at a time, whatever ids the processes gave it", async () => {
  const { first, second, seen } = await movingIn();
  const volatile = (socket, id) => socket.event(undefined, { epoch: undefined, event_id: id, custom: { n: id } });
  volatile(first, "a1");
  volatile(second, "a2"); // not ours yet
  second.watching({ offset: 0, recovered: true });
  volatile(first, "b1"); // not ours any more
  volatile(second, "b2");
  assert.deepEqual(seen.map(({ n }) => n), ["a1", "b2"]);
});

test("what the relay lost in the move is a gap", async () => {
  const { second, gaps, call } = await movingIn();
  second.watching({ epoch: "e2", offset: 0, recovered: false });
  assert.deepEqual(gaps, [{ from: { epoch: "e1", offset: 0 }, to: { epoch: "e2", offset: 0 } }]);
  assert.deepEqual(call.position, { epoch: "e2", offset: 0 });
});

test("each call moves when its own watch is answered; the last one lets go of the first socket", async () => {
  const world = await setUpWatching();
  const { clock, sockets: [first], relay, seen } = world;
  const other = relay.watch("default:other");
  first.watching();
  first.say({ type: "connection.draining", reconnect_within_ms: WITHIN });
  await clock.advance(WITHIN / 4);
  const second = world.sockets[1];
  welcome(second);
  second.watching({ cid: CID, offset: 0, recovered: true });
  assert.equal(first.closed, false);
  const late = [];
  other.on("event", ({ offset }) => late.push(offset));
  first.event(1, { call_cid: "default:other" });
  second.event(1);
  assert.deepEqual([seen.length, late], [1, [1]]);
  second.watching({ offset: 1, recovered: true });
  assert.equal(first.closed, true);
});

test("the first socket may end in the middle of it: nothing is missed", async () => {
  const { first, second, clock, sockets, seen, relay } = await movingIn();
  first.event(1);
  first.cut(1012);
  assert.equal(relay.state, "open");
  second.watching({ offset: 2, recovered: true });
  second.event(1);
  second.event(2);
  assert.deepEqual(seen.map(({ n }) => n), [1, 2]);
  await clock.advance(20_000);
  assert.equal(sockets.length, 2);
  assert.equal(relay.connectionId, "c2");
});

test("a second socket that cannot be had is tried again while there is time", async () => {
  const { first, second, clock, sockets, relay } = await moving();
  second.cut();
  assert.equal(first.closed, false);
  await clock.advance(TIMING.backoffBase / 2);
  assert.equal(sockets.length, 3);
  sockets[2].cut();
  await clock.advance(WITHIN);
  const tries = sockets.length;
  await clock.advance(WITHIN);
  assert.equal(sockets.length, tries);
  assert.equal(relay.state, "open");
  first.cut(1012);
  assert.equal(relay.state, "waiting");
});

test("a second socket that fails after a call has moved gives the call back to the first", async () => {
  const { first, second, seen, gaps } = await movedHalf();
  second.event(1);
  first.event(1);
  first.event(2); // not listened to
  second.cut();
  assert.deepEqual(first.last("call.watch").since, { epoch: "e1", offset: 1 });
  first.watching({ offset: 2, recovered: true });
  first.event(2);
  assert.deepEqual(seen.map(({ n }) => n), [1, 2]);
  assert.deepEqual(gaps, []);
});

test("a refused login or a silent relay on the second socket costs nothing", async () => {
  const { first, second, clock, relay, errors } = await moving();
  second.onopen();
  second.say({ type: "connection.error", error: { code: 9, StatusCode: 429, message: "too many" } });
  second.cut(4004);
  assert.equal(relay.state, "open");
  first.event(1);
  await clock.advance(WITHIN);
  assert.equal(first.closed, false);
  assert.deepEqual(errors, []);
});

test("a send under way is answered by the first socket; the next one waits for that and takes the second", async () => {
  const { first, second, call } = await movingIn();
  const before = call.send({ n: 1 });
  second.watching({ offset: 0, recovered: true });
  assert.equal(first.closed, false);
  const after = call.send({ n: 2 });
  assert.equal(second.of("call.send").length, 0);
  first.sent(first.last("call.send"));
  await before;
  assert.equal(first.closed, true);
  second.sent(second.last("call.send"), { epoch: "e1", offset: 2 });
  assert.deepEqual((await after).offset, 2);
});

test("a send that the first socket does not answer is repeated on the second under its id, in order", async () => {
  const { first, second, call, clock } = await movingIn();
  const before = call.send({ n: 1 });
  const volatile = call.send({ n: 2 }, { volatile: true });
  second.watching({ offset: 0, recovered: true });
  const after = call.send({ n: 3 });
  const failed = assert.rejects(volatile, { code: "disconnected", outcome: "unknown" });
  await clock.advance(TIMING.probe);
  await failed;
  assert.equal(first.closed, true);
  const [one, three] = second.of("call.send");
  assert.equal(one.event_id, first.of("call.send")[0].event_id);
  assert.deepEqual(three.custom, { n: 3 });
  second.sent(one);
  second.sent(three);
  await Promise.all([before, after]);
});

test("what the first socket cannot answer any more is repeated at once", async () => {
  const { first, second, call } = await movingIn();
  const sending = call.send({ n: 1 });
  first.cut(1012);
  assert.equal(second.last("call.send").event_id, first.last("call.send").event_id);
  second.watching({ offset: 0, recovered: true });
  second.sent(second.last("call.send"));
  await sending;
});

test("a send that was to be tried again is tried once, on the second socket", async () => {
  const { first, second, call, clock } = await movingIn();
  const sending = call.send({ n: 1 });
  first.refuse(first.last("call.send"), 9, 429);
  first.cut(1012);
  second.watching({ offset: 0, recovered: true });
  await clock.advance(TIMING.backoffBase * 4);
  assert.equal(second.of("call.send").length, 1);
  second.sent(second.last("call.send"));
  await sending;
});

test("a token that was renewed during the move is told on the second socket", async () => {
  const { first, second, relay } = await movingIn();
  const renewing = relay.refreshToken("t2");
  second.watching({ offset: 0, recovered: true });
  await renewing;
  assert.equal(first.last("token.refresh").token, "t2");
  assert.equal(second.last("token.refresh").token, "t2");
});

test("an answer of the first socket does not bring back a call that has moved", async () => {
  const world = await setUpWatching();
  const { clock, sockets: [first], relay } = world;
  const other = relay.watch("default:other"); // not answered yet
  const late = [];
  other.on("event", ({ offset }) => late.push(offset));
  const asked = first.last("call.watch");
  first.say({ type: "connection.draining", reconnect_within_ms: WITHIN });
  await clock.advance(WITHIN / 4);
  const second = world.sockets[1];
  welcome(second);
  second.watching({ offset: 0 });
  first.say({ type: "call.watching", id: asked.id, call_cid: other.cid, epoch: "e1", offset: 0 });
  first.event(1, { call_cid: other.cid });
  second.event(1, { call_cid: other.cid });
  second.event(2, { call_cid: other.cid });
  assert.deepEqual(late, [1, 2]);
});

test("nor does one that comes after the move, while the first socket still owes another answer", async () => {
  const world = await setUpWatching();
  const { clock, sockets: [first], relay, call, errors } = world;
  const other = relay.watch("default:other");
  const asked = first.last("call.watch");
  const sending = call.send({ n: 1 });
  const late = [];
  other.on("event", ({ offset }) => late.push(offset));
  first.say({ type: "connection.draining", reconnect_within_ms: WITHIN });
  await clock.advance(WITHIN / 4);
  const second = world.sockets[1];
  welcome(second);
  for (const { id, call_cid } of second.of("call.watch")) {
    second.say({ type: "call.watching", id, call_cid, epoch: "e1", offset: 0, recovered: call_cid === CID });
  }
  assert.equal(first.closed, false);
  first.say({ type: "call.watching", id: asked.id, call_cid: other.cid, epoch: "e1", offset: 0 });
  first.sent(first.last("call.send"));
  await sending;
  assert.equal(first.closed, true);
  second.event(1, { call_cid: other.cid });
  assert.deepEqual(late, [1]);
  assert.equal(other.state, "watching");
  assert.deepEqual(errors, []);
});

test("a refusal that the first socket sends too late is nobody's", async () => {
  const world = await setUpWatching();
  const { clock, sockets: [first], relay, call, errors } = world;
  relay.on("error", (error) => errors.push(error));
  const other = relay.watch("default:other");
  const asked = first.last("call.watch");
  const sending = call.send({ n: 1 });
  first.say({ type: "connection.draining", reconnect_within_ms: WITHIN });
  await clock.advance(WITHIN / 4);
  const second = world.sockets[1];
  welcome(second);
  for (const { id, call_cid } of second.of("call.watch")) {
    second.say({ type: "call.watching", id, call_cid, epoch: "e1", offset: 0, recovered: call_cid === CID });
  }
  first.refuse(asked, 4, 400);
  assert.equal(other.state, "watching");
  first.sent(first.last("call.send"));
  await sending;
  assert.deepEqual(errors, []);
});

test("a call that was not answered by the first socket yet has no gap in the move", async () => {
  const world = await setUpWatching();
  const { clock, sockets: [first], relay } = world;
  first.say({ type: "connection.draining", reconnect_within_ms: WITHIN });
  await clock.advance(WITHIN / 4);
  const second = world.sockets[1];
  welcome(second);
  const other = relay.watch("default:other");
  const late = [];
  const gaps = [];
  other.on("event", ({ offset }) => late.push(offset));
  other.on("gap", (gap) => gaps.push(gap));
  first.watching({ offset: 5 });
  first.event(6, { call_cid: other.cid });
  second.watching({ offset: 6 });
  second.event(7, { call_cid: other.cid });
  assert.deepEqual(late, [7]);
  assert.deepEqual(gaps, []);
});

test("a call that was asked for on a second socket that fails is asked for on the first", async () => {
  const { first, second, relay, clock } = await movingIn();
  const other = relay.watch("default:other");
  second.cut();
  assert.equal(first.last("call.watch").call_cid, other.cid);
  first.watching({ offset: 5 });
  first.event(6, { call_cid: other.cid });
  assert.deepEqual(other.position, { epoch: "e1", offset: 6 });
  await clock.advance(TIMING.command + TIMING.backoffBase);
  assert.equal(first.of("call.watch").length, 2);
});

test("what comes before the first socket has answered again is not taken for a gap", async () => {
  const { first, second, seen, gaps, recovered, call } = await movedHalf();
  first.event(1);
  first.event(2); // not listened to, and the second socket fails before it delivers them
  second.cut();
  first.event(3);
  first.watching({ offset: 3, recovered: true });
  [1, 2, 3, 4].forEach((offset) => first.event(offset));
  assert.deepEqual(seen, [1, 2, 3, 4].map((n) => ({ n, missed: false })));
  assert.deepEqual([gaps, recovered], [[], []]);
  assert.equal(call.state, "watching");
});

/** CID was given back to the first socket, which has not answered; `told` is what its listeners heard. */
async function handedBack() {
  const world = await movedHalf();
  const told = [];
  world.call.on("watching", () => told.push("watching"));
  world.call.on("recovered", ({ count }) => told.push(`recovered ${count}`));
  world.second.cut();
  return { ...world, told };
}

test("a call that waits for the first socket's answer again has been away when that one is cut too", async () => {
  const { first, sockets, clock, states, seen, told } = await handedBack();
  first.cut();
  await clock.advance(states.at(-1).retryIn);
  const next = sockets.at(-1);
  next.accept();
  next.watching({ cid: CID, offset: 1, recovered: true });
  next.event(1);
  assert.deepEqual(told, ["watching", "recovered 1"]);
  assert.deepEqual(seen, [{ n: 1, missed: true }]);
});

test("and so it has when another second socket is there already", async () => {
  const { first, sockets, clock, seen, told } = await handedBack();
  await clock.advance(TIMING.backoffBase / 2);
  const [, , third] = sockets;
  welcome(third);
  first.cut(1012);
  third.watching({ cid: CID, offset: 1, recovered: true });
  third.event(1);
  assert.deepEqual(told, ["watching", "recovered 1"]);
  assert.deepEqual(seen, [{ n: 1, missed: true }]);
});

test("it has not when the other second socket answers before the first ends", async () => {
  const { first, sockets, clock, seen, told } = await handedBack();
  await clock.advance(TIMING.backoffBase / 2);
  const [, , third] = sockets;
  welcome(third);
  third.watching({ cid: CID, offset: 1, recovered: true });
  first.cut(1012);
  third.event(1);
  assert.deepEqual(told, []);
  assert.deepEqual(seen, [{ n: 1, missed: false }]);
});

test("a call that waits to be asked for again goes on waiting when the second socket cannot be had", async () => {
  const world = await setUpWatching();
  const { clock, sockets: [first], relay } = world;
  relay.watch("default:other");
  first.say({ type: "connection.draining", reconnect_within_ms: WITHIN });
  await clock.advance(WITHIN / 4);
  for (const wait of [TIMING.backoffBase, TIMING.backoffBase * 2]) {
    first.refuse(first.last("call.watch"), -1, 503);
    const before = first.of("call.watch").length;
    await clock.advance(wait / 2 - 1);
    world.sockets.at(-1).cut();
    await clock.advance(wait / 2);
    assert.equal(first.of("call.watch").length, before);
    await clock.advance(1);
    assert.equal(first.of("call.watch").length, before + 1);
  }
});

test("a second socket that cannot even be made asks for nothing again", async () => {
  const world = await setUpWatching();
  const { clock, sockets: [first], relay } = world;
  const secret = relay.watch("default:secret");
  first.refuse(first.last("call.watch"), 17, 403);
  world.world.broken = true;
  first.say({ type: "connection.draining", reconnect_within_ms: WITHIN });
  await clock.advance(WITHIN);
  assert.equal(first.of("call.watch").length, 2);
  assert.equal(secret.state, "refused");
});

test("a question that is open on the first socket is not repeated when the second cannot be had", async () => {
  const { first, second, relay } = await moving();
  const other = relay.watch("default:other");
  second.cut();
  assert.equal(first.of("call.watch").length, 2);
  first.watching({ offset: 5 });
  assert.equal(other.state, "watching");
});

test("a question that the first socket never answers takes nothing back from the second", async () => {
  const world = await setUpWatching();
  const { clock, sockets: [first], relay } = world;
  const other = relay.watch("default:other"); // never answered there
  first.say({ type: "connection.draining", reconnect_within_ms: TIMING.command * 2 });
  await clock.advance(TIMING.command / 2);
  const second = world.sockets[1];
  welcome(second);
  await clock.advance(TIMING.command / 2 + TIMING.backoffBase * 2);
  assert.equal(first.of("call.watch").length, 2);
  second.watching({ offset: 0 });
  assert.equal(other.state, "watching");
});

test("a call that waits to be asked for again is asked for on the second socket alone", async () => {
  const world = await setUpWatching();
  const { clock, sockets: [first], relay } = world;
  const other = relay.watch("default:other");
  first.say({ type: "connection.draining", reconnect_within_ms: WITHIN });
  await clock.advance(WITHIN / 4 - 1);
  first.refuse(first.last("call.watch"), -1, 503);
  await clock.advance(1);
  const second = world.sockets[1];
  welcome(second);
  await clock.advance(TIMING.backoffBase);
  assert.equal(first.of("call.watch").length, 2);
  second.watching({ offset: 0 });
  assert.equal(other.state, "watching");
});

test("a call that the second socket refuses has moved as well", async () => {
  const { first, second, other, asked, moves } = await movedHalf();
  second.refuse(asked, 17, 403);
  assert.equal(other.state, "refused");
  assert.equal(first.closed, true);
  assert.equal(moves.length, 1);
});

test("the last call may be left between two tries to move", async () => {
  const { first, second, sockets, call, clock, moves } = await movingIn();
  second.cut();
  call.unwatch();
  assert.equal(first.closed, false);
  await clock.advance(TIMING.backoffBase / 2);
  welcome(sockets[2]);
  assert.equal(first.closed, true);
  assert.equal(moves.length, 1);
});

test("what was being replayed is not called recovered when the move has lost it", async () => {
  const world = await setUpWatching();
  const { clock, seen, gaps, recovered, call } = world;
  const first = await reconnect(world);
  first.watching({ offset: 5, recovered: true });
  first.event(1);
  first.say({ type: "connection.draining", reconnect_within_ms: WITHIN });
  await clock.advance(WITHIN / 4);
  const second = world.sockets.at(-1);
  welcome(second);
  second.watching({ epoch: "e2", offset: 9, recovered: false });
  second.event(10, { epoch: "e2" });
  assert.equal(gaps.length, 1);
  assert.deepEqual(recovered, []);
  assert.deepEqual(seen.at(-1), { n: 10, missed: false });
  assert.deepEqual(call.position, { epoch: "e2", offset: 10 });
});

test("an epoch that begins during the move repeats nothing and turns no position back", async () => {
  const { first, second, seen, call } = await movingIn();
  const place = (socket, epoch, offset) => socket.event(offset, { epoch, event_id: `${epoch}-${offset}`, user: undefined, type: "call.updated" });
  const types = [];
  call.on("event", ({ offset }) => types.push(offset));
  place(first, "e1", 1);
  place(first, "e2", 2);
  second.watching({ epoch: "e2", offset: 2, recovered: true });
  place(second, "e1", 1);
  assert.deepEqual(call.position, { epoch: "e2", offset: 2 });
  place(second, "e2", 2);
  place(second, "e2", 3);
  assert.deepEqual(types, [1, 2, 3]);
  assert.equal(seen.length, 3);
});

test("a new name for the place we are at is taken over in the move", async () => {
  const { first, second, call, gaps } = await movingIn();
  first.event(1);
  second.watching({ epoch: "e2", offset: 1, recovered: true });
  assert.deepEqual(call.position, { epoch: "e2", offset: 1 });
  assert.deepEqual(gaps, []);
});

test("what a failed second socket was asked is not asked again of the first", async () => {
  const { first, second, clock } = await movingIn();
  second.cut();
  await clock.advance(TIMING.command + TIMING.backoffBase * 4);
  assert.equal(first.of("call.watch").length, 1);
});

test("what is watched during the move is asked for where it is to stay; what is left is left on both", async () => {
  const { first, second, relay, call } = await movingIn();
  relay.watch("default:new");
  assert.equal(first.last("call.watch").call_cid, CID);
  assert.equal(second.last("call.watch").call_cid, "default:new");
  call.unwatch();
  assert.equal(first.last("call.unwatch").call_cid, CID);
  assert.equal(second.last("call.unwatch").call_cid, CID);
  second.watching({ offset: 0 });
  assert.equal(first.closed, true);
});

test("a call that nobody watches any more does not keep the others from moving", async () => {
  const { first, second, relay, sockets, clock } = await movingIn();
  relay.watch("default:new").unwatch();
  const [, asked] = second.of("call.watch");
  second.refuse(asked, -1, 503);
  assert.equal(second.closed, false);
  second.say({ ...second.of("call.watch")[0], type: "call.watching", epoch: "e1", offset: 0, recovered: true });
  assert.equal(first.closed, true);
  await clock.advance(WITHIN);
  assert.equal(sockets.length, 2);
});

test("without a call there is nothing to wait for", async () => {
  const { relay, clock, sockets } = setUp();
  await settle();
  sockets[0].accept();
  sockets[0].say({ type: "connection.draining", reconnect_within_ms: WITHIN });
  await clock.advance(WITHIN / 2);
  welcome(sockets[1]);
  assert.equal(sockets[0].closed, true);
  assert.equal(relay.connectionId, "c2");
});

test("a second notice on the same socket changes nothing; one on the next socket moves on", async () => {
  const { first, second, clock, sockets } = await moving();
  first.say({ type: "connection.draining", reconnect_within_ms: WITHIN });
  welcome(second);
  second.watching({ offset: 0, recovered: true });
  second.say({ type: "connection.draining", reconnect_within_ms: WITHIN });
  await clock.advance(WITHIN / 4);
  assert.equal(sockets.length, 3);
});

test("close() in the middle of a move leaves no socket and no timer", async () => {
  const { first, second, relay, clock } = await movingIn();
  relay.close();
  assert.ok(first.closed && second.closed);
  assert.equal(clock.armed, 0);
});

test("after a hundred moves no timer is left over, and nothing was seen twice", async () => {
  const world = await setUpWatching();
  const { clock, sockets, seen, relay } = world;
  for (let n = 1; n <= 100; n += 1) {
    const before = sockets.at(-1);
    before.say({ type: "connection.draining", reconnect_within_ms: WITHIN });
    await clock.advance(WITHIN / 4);
    welcome(sockets.at(-1), `c${n}`);
    before.event(n);
    sockets.at(-1).watching({ offset: n, recovered: true });
    sockets.at(-1).event(n);
    assert.ok(before.closed);
  }
  assert.deepEqual(seen.map(({ n }) => n), Array.from({ length: 100 }, (_, n) => n + 1));
  assert.ok(clock.armed <= 3, `${clock.armed} timers`);
  relay.close();
  assert.equal(clock.armed, 0);
});
