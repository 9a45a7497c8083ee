// What needs a person.
import { issuesNow } from "../data/derived";
import { Empty } from "../parts/basics";
import { loaded } from "../data/store";

export function Issues() {
  const list = issuesNow.value;
  return (
    <div class="page">
      <h1>Issues</h1>
      {list.length === 0 && loaded.value ? (
        <Empty>Nothing needs you: all hosts are live, no guest has crashed, no job of today has failed.</Empty>
      ) : (
        <ul class="issues">
          {list.map((issue) => (
            <li key={issue.key} class={issue.grave ? "issue issue-grave" : "issue"}>
              <div>
                <a href={`#${issue.link}`}>{issue.what}</a>
                <p class="lines">{issue.why}</p>
              </div>
              <p class="advice">{issue.advice}</p>
            </li>
          ))}
        </ul>
      )}
    </div>
  );
}
