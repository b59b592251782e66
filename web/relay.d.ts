/**
 * Types of relay.js, the client of the relay. What each thing does is documented there.
 * SPDX-License-Identifier: Apache-2.0
 */

/** Where in a call's history: offsets count from 1 without holes; an epoch begins where the relay began anew. */
export interface Position {
  epoch: string;
  offset: number;
}

/** A user as the relay shows it. */
export interface User {
  id: string;
  name?: string;
  image?: string;
  role?: string;
  custom?: Record<string, unknown>;
  [key: string]: unknown;
}

/** Something that happened in a call, or (without `call_cid`) concerns this user. */
export interface RelayEvent {
  /** `custom`, or e.g. `call.session_started`. */
  type: string;
  /** RFC 3339, up to nine digits of a second. */
  created_at: string;
  call_cid?: string;
  /** What the sender sent; for `type: "custom"`. */
  custom?: Record<string, unknown>;
  user?: User;
  event_id?: string;
  /** Absent when volatile, like `offset`. */
  epoch?: string;
  offset?: number;
  [key: string]: unknown;
}

/** `missed`: it happened while this client was away and is delivered afterwards. */
export interface EventMeta {
  missed: boolean;
}

export interface Watchers {
  /** Connections that watch. */
  count: number;
  /** At most 50. */
  users: User[];
}

/** What happened between these positions is lost for this client; delivery goes on after `to`. */
export interface Gap {
  from: Position;
  to: Position;
}

/** All `count` events that were missed have been delivered. */
export interface Recovered extends Gap {
  count: number;
}

export interface Watching extends Position {
  /** Only when the watch asked for a position. */
  recovered?: boolean;
}

export type State = "connecting" | "open" | "waiting" | "closed";

export interface StateChange {
  state: State;
  previous: State;
  /** Why it is waiting or closed, in words. */
  reason: string | null;
  /** Of the WebSocket; null where it was this client that gave up. */
  closeCode: number | null;
  error: Error | null;
  /** Failures in a row. */
  attempt: number;
  /** When waiting: milliseconds until the next try, and its time by the clock (ms since the epoch). */
  retryIn: number | null;
  retryAt: number | null;
}

/** The relay's numbers are Stream's; the words are this client's own. */
export type ErrorCode = number | "timeout" | "queue_full" | "disconnected" | "closed" | "bad_input" | "network";

export class RelayError extends Error {
  constructor(message: string, facts: { code: ErrorCode; status?: number; [fact: string]: unknown });
  static from(body: unknown, facts?: Record<string, unknown>): RelayError;
  readonly name: "RelayError";
  code: ErrorCode;
  /** The HTTP status that belongs to it; 0 when there is none. */
  status: number;
  /** Of a rejected send. */
  eventId?: string;
  outcome?: "unsent" | "refused" | "unknown";
  /** Of an error that closed the connection. */
  closeCode?: number;
  cause?: unknown;
  /** Whether the same request may succeed later, unchanged. */
  get temporary(): boolean;
}

/** Milliseconds. */
export interface Timing {
  connect: number;
  token: number;
  ping: number;
  silence: number;
  probe: number;
  backoffBase: number;
  backoffMax: number;
  stable: number;
  send: number;
  command: number;
  move: number;
  refresh: number;
}
export const TIMING: Readonly<Timing>;

/** When a JWT expires, in ms since the epoch; Infinity when it does not, or cannot be read. */
export function tokenExpiry(token: string): number;

export interface CloseAdvice {
  action: "retry" | "token" | "stop";
  /** The shortest wait, in ms. */
  floor: number;
  reason: string;
}
export function adviseClose(code: number, refusal?: RelayError | null): CloseAdvice;
export function retryDelay(
  attempt: number, random: () => number, bounds?: Pick<Timing, "backoffBase" | "backoffMax">, floor?: number,
): number;
/** A random id for an event: 32 hexadecimal digits. */
export function newEventId(): string;

/** Ends what `on` began. */
export type Unsubscribe = () => void;

export interface CallListeners {
  event: (event: RelayEvent, meta: EventMeta) => void;
  watching: (watching: Watching) => void;
  watchers: (watchers: Watchers) => void;
  gap: (gap: Gap) => void;
  position: (position: Position) => void;
  recovered: (recovered: Recovered) => void;
  error: (error: RelayError) => void;
}

export interface SendOptions {
  /** Not kept: no position, no history, and never repeated by this client. */
  volatile?: boolean;
  /** Sent again under the same id, it is the same event. Default: a random one. */
  eventId?: string;
}

/** `epoch` and `offset` are absent when volatile. */
export interface Sent {
  event_id: string;
  epoch?: string;
  offset?: number;
}

/** One watched call; made by `relay.watch`. */
export class Call {
  private constructor();
  readonly cid: string;
  readonly state: "pending" | "watching" | "refused" | "ended";
  readonly position: Position | null;
  readonly watchers: Watchers;
  on<Name extends keyof CallListeners>(name: Name, fn: CallListeners[Name]): Unsubscribe;
  /** Events of one type, e.g. `custom`. */
  on(eventType: string, fn: (event: RelayEvent, meta: EventMeta) => void): Unsubscribe;
  send(custom: Record<string, unknown>, options?: SendOptions): Promise<Sent>;
  unwatch(): void;
}

/** The part of a WebSocket this client uses: a browser's, or that of the `ws` package. */
export interface SocketLike {
  readonly readyState?: number;
  send(text: string): void;
  close(): void;
  onopen: any;
  onmessage: any;
  onclose: any;
  onerror: any;
}

export interface Clock {
  /** Milliseconds since the epoch. */
  now(): number;
  setTimeout(fn: () => void, ms: number): unknown;
  clearTimeout(handle: any): void;
}

export type Grant = string | { token: string; user?: User };

export interface RelayOptions {
  /** http(s) base; default: the page's origin. */
  url?: string;
  apiKey: string;
  user?: User;
  /** A JWT. This or `tokenProvider` is needed. */
  token?: string;
  /** Asked at start without `token`, in the last minute of a token's life, and when it has expired. */
  tokenProvider?: () => Grant | Promise<Grant>;
  /** For Node before 22: the class of the `ws` package. */
  WebSocket?: new (url: string) => SocketLike;
  timing?: Partial<Timing>;
  clock?: Clock;
  /** In [0, 1), like Math.random. */
  random?: () => number;
  newId?: () => string;
  window?: Pick<EventTarget, "addEventListener" | "removeEventListener">;
  document?: Pick<EventTarget, "addEventListener" | "removeEventListener"> & { visibilityState: string };
  /** What a listener threw; default: the console. */
  onListenerError?: (error: unknown) => void;
}

export interface GuestOptions {
  url?: string;
  apiKey: string;
  user: User;
  fetch?: typeof globalThis.fetch;
  /** Milliseconds. */
  timeout?: number;
}

export interface RelayListeners {
  state: (change: StateChange) => void;
  event: (event: RelayEvent) => void;
  error: (error: RelayError) => void;
  /** The relay's process stopped and another one serves us. Nothing was missed. */
  moved: (facts: { connectionId: string }) => void;
}

export class Relay {
  constructor(options: RelayOptions);
  static guest(options: GuestOptions): Promise<{ user: User; token: string }>;
  readonly state: State;
  readonly user: User | null;
  readonly connectionId: string | null;
  /** Sends without an answer so far. */
  readonly pending: number;
  on<Name extends keyof RelayListeners>(name: Name, fn: RelayListeners[Name]): Unsubscribe;
  watch(cid: string, options?: { since?: Position }): Call;
  send(cid: string, custom: Record<string, unknown>, options?: SendOptions): Promise<Sent>;
  refreshToken(token: string): Promise<void>;
  connect(): void;
  close(): void;
}
