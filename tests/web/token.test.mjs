/** Renewing the token before it expires, and waking up. */
import assert from "node:assert/strict";
import { test } from "node:test";

import { TIMING, tokenExpiry } from "../../web/relay.js";
import { reconnect, settle, setUp, setUpWatching } from "./fakes.mjs";

function jwt(claims) {
  return `e30.${Buffer.from(JSON.stringify(claims)).toString("base64url")}.c2ln`;
}

// --- the token ----------------------------------------------------------------------------------

test("the expiry of a token is read, and of what is none it is never", () => {
  assert.equal(tokenExpiry(jwt({ exp: 12 })), 12_000);
  for (const token of [jwt({}), jwt({ exp: "12" }), "t1", "", "a.b.c", undefined, "e30.bnVsbA.x"]) {
    assert.equal(tokenExpiry(token), Infinity);
  }
});

async function expiring(lifeS, tokens) {
  const asked = [];
  const tokenProvider = async () => {
    asked.push(world.clock.now());
    return tokens.length > 0 ? tokens.shift() : Promise.reject(new Error("the login server is away"));
  };
  const world = setUp({ token: jwt({ exp: 1000 + lifeS }), tokenProvider }); // the fake clock begins at 1 000 s
  await settle();
  world.sockets[0].accept();
  return { ...world, asked };
}

/** Let time pass while the relay speaks every 20 s, as it does. */
async function pass({ clock, sockets }, ms) {
  for (let rest = ms; rest > 0; rest -= 20_000) {
    await clock.advance(Math.min(rest, 20_000));
    sockets.at(-1).say({ type: "health.check" });
  }
}

test("a token is renewed at a random moment of its last minute, without a reconnect", async () => {
  const fresh = jwt({ exp: 9_000 });
  const world = await expiring(3600, [fresh]);
  const { clock, sockets, asked } = world;
  await pass(world, 3_600_000 - 45_000 - 1);
  assert.deepEqual(asked, []);
  await clock.advance(1);
  assert.equal(asked.length, 1);
  assert.equal(sockets.length, 1);
  const command = sockets.at(-1).last("token.refresh");
  assert.equal(command.token, fresh);
});

test("a token that does not live long is renewed in the second half of its life", async () => {
  const { clock, asked } = await expiring(20, [jwt({ exp: 5_000 })]);
  await clock.advance(12_499);
  assert.equal(asked.length, 0);
  await clock.advance(1);
  assert.equal(asked.length, 1);
});

test("the relay's clock decides when a token is old", async () => {
  const { clock, sockets, asked, relay } = await expiring(20, [jwt({ exp: 5_000 })]);
  relay.close();
  relay.connect();
  await settle();
  sockets.at(-1).onopen();
  const ahead = new Date(clock.now() + 10_000).toISOString();
  sockets.at(-1).say({ type: "connection.ok", connection_id: "c", created_at: ahead });
  await clock.advance(6_250);
  assert.equal(asked.length, 1);
});

test("a renewal that fails is tried again, and each renewed token is renewed in its turn", async () => {
  const tokens = [];
  const world = await expiring(100, tokens);
  const { sockets, asked } = world;
  await pass(world, 62_500);
  assert.equal(asked.length, 1);
  tokens.push(jwt({ exp: 1_300 }), jwt({ exp: 1_900 }));
  await pass(world, 5_000);
  assert.equal(asked.length, 2);
  const { id } = sockets[0].last("token.refresh");
  sockets[0].say({ type: "token.refreshed", id });
  await pass(world, 190_000);
  assert.equal(asked.length, 3);
  assert.equal(sockets.length, 1);
});

test("a token that lives for years is not renewed at once", async () => {
  const { clock, asked } = await expiring(10 * 365 * 86_400, ["t2"]);
  await clock.advance(20_000);
  assert.deepEqual(asked, []);
});

test("after a long sleep it does not dial with a token that has expired meanwhile", async () => {
  const { clock, sockets } = await expiring(3, ["t2"]);
  sockets[0].cut();
  clock.jump(7_200_000);
  await clock.advance(TIMING.backoffBase);
  sockets.at(-1).onopen();
  assert.equal(sockets.at(-1).received[0].token, "t2");
});

// --- waking up ----------------------------------------------------------------------------------

test("a page that comes back from the cache or was frozen tests its connection at once", async () => {
  const { window, document, sockets, states, clock } = await setUpWatching();
  const before = sockets[0].of("health.check").length;
  document.fire("resume");
  window.dispatchEvent(Object.assign(new Event("pageshow"), { persisted: true }));
  window.dispatchEvent(Object.assign(new Event("pageshow"), { persisted: false }));
  assert.equal(sockets[0].of("health.check").length, before + 2);
  await clock.advance(TIMING.probe);
  assert.equal(states.at(-1).state, "waiting");
});

test("a try that began before the device slept is begun anew, a fresh one is left alone", async () => {
  const { window, clock, sockets } = setUp();
  await settle();
  window.fire("online");
  await settle();
  assert.equal(sockets.length, 1);
  await clock.advance(TIMING.probe);
  window.fire("online");
  await settle();
  assert.equal(sockets.length, 2);
  assert.ok(sockets[0].closed);
});
