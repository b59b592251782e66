// A small application as somebody would write it for Stream; only `baseURL` points at the relay.
// What it needs is in its address: ?relay=http://…&key=…&user=…&token=…&call=type:id

import { useEffect, useState } from "react";
import { createRoot } from "react-dom/client";
import {
  StreamCall,
  StreamVideo,
  StreamVideoClient,
  useCall,
  useCallStateHooks,
  useConnectedUser,
} from "@stream-io/video-react-sdk";

const given = Object.fromEntries(new URLSearchParams(location.search));

const client = new StreamVideoClient({
  apiKey: given.key,
  user: { id: given.user, name: given.user[0].toUpperCase() + given.user.slice(1) },
  token: given.token,
  options: { baseURL: `${given.relay}/video`, locationHintUrl: `${given.relay}/hint` },
});

function App() {
  const [call, setCall] = useState();
  useEffect(() => {
    const found = client.call(...given.call.split(":"));
    found.getOrCreate().then(() => setCall(found));
  }, []);
  if (!call) return <p>Connecting …</p>;
  return (
    <StreamVideo client={client}>
      <StreamCall call={call}>
        <Room />
      </StreamCall>
    </StreamVideo>
  );
}

function Room() {
  const call = useCall();
  const user = useConnectedUser();
  return (
    <main>
      <h1>
        {call.cid} <small>as {user?.name}</small>
      </h1>
      <State />
      <Events />
    </main>
  );
}

function State() {
  const {
    useCallBlockedUserIds,
    useCallCreatedBy,
    useCallCustomData,
    useCallEndedAt,
    useCallMembers,
    useCallSession,
    useOwnCapabilities,
  } = useCallStateHooks();
  const session = useCallSession();
  const facts = {
    topic: useCallCustomData().topic,
    "created by": useCallCreatedBy()?.name,
    members: names(useCallMembers()),
    participants: names(session?.participants),
    blocked: useCallBlockedUserIds().join(", "),
    "may end": useOwnCapabilities().includes("end-call") ? "yes" : "no",
    state: useCallEndedAt() ? "ended" : "open",
  };
  return (
    <dl>
      {Object.entries(facts).map(([name, value]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd data-testid={name}>{value || "–"}</dd>
        </div>
      ))}
    </dl>
  );
}

const names = (people = []) => people.map(({ user }) => user.name || user.id).join(", ");

function Events() {
  const call = useCall();
  const [events, setEvents] = useState([]);
  useEffect(() => {
    const add = (event) => setEvents((known) => [...known, event]);
    const leave = [call.on("custom", add), call.on("call.reaction_new", add)];
    return () => leave.forEach((off) => off());
  }, [call]);
  return (
    <>
      <label>
        Topic <input onChange={({ target }) => call.update({ custom: { topic: target.value } })} />
      </label>
      <button onClick={() => call.join().catch((error) => console.warn(error.message))}>Join</button>
      <button onClick={() => call.sendCustomEvent({ animation: "balloons" })}>Balloons</button>
      <button onClick={() => call.sendReaction({ type: "raised-hand", emoji_code: ":raise-hand:" })}>
        Raise hand
      </button>
      <ol data-testid="events">
        {events.map((event, index) => (
          <li key={index}>{told(event)}</li>
        ))}
      </ol>
    </>
  );
}

const told = ({ custom, reaction, user }) =>
  custom ? `${user.name}: ${custom.animation}` : `${reaction.user.name}: ${reaction.type}`;

createRoot(document.getElementById("root")).render(<App />);
