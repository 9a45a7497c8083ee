// What has become of what the user has set going. Successes go by themselves, failures stay until they are read.
import { activities, dismiss, type Activity } from "../data/activity";
import { duration } from "../data/format";
import { now } from "../data/store";

const WORDS: Record<Activity["status"], string> = {
  asked: "asked",
  running: "running",
  done: "done",
  failed: "failed",
};

function Message({ activity }: { activity: Activity }) {
  const ended = activity.status === "done" || activity.status === "failed";
  return (
    <li class={`message message-${activity.status}`}>
      <div class="message-head">
        <b>{activity.title}</b>
        <span>
          {WORDS[activity.status]}
          {ended ? "" : ` ${duration((now.value - activity.begun) / 1000)}`}
        </span>
        <button type="button" class="plain" aria-label={`Dismiss: ${activity.title}`} onClick={() => dismiss(activity.id)}>
          <span aria-hidden="true">✕</span>
        </button>
      </div>
      {activity.message ? <p class="lines">{activity.message}</p> : null}
    </li>
  );
}

export function Messages() {
  return (
    <div class="messages" aria-live="polite" aria-relevant="additions text">
      <ul>
        {activities.value.map((activity) => (
          <Message key={activity.id} activity={activity} />
        ))}
      </ul>
    </div>
  );
}
