// The frame of the page: where one can go, whether what is shown is live, and who is logged in.
import { effect, signal } from "@preact/signals";
import * as api from "./data/api";
import { clock, duration } from "./data/format";
import { issuesNow } from "./data/derived";
import { expired, session } from "./data/session";
import { connection, freshAt, hosts, loaded, may, now, retry, retryAt, user } from "./data/store";
import { lazy } from "./lazy";
import { route } from "./route";
import { Empty } from "./parts/basics";
import { Messages } from "./parts/messages";
import { Questions } from "./parts/questions";
import { Login, LoginAgain } from "./views/login";
import { Overview } from "./views/overview";

type Theme = "auto" | "light" | "dark";
const THEMES: readonly Theme[] = ["auto", "light", "dark"];
const THEME_KEY = "hypervisor-theme";

function storedTheme(): Theme {
  try {
    const found = localStorage.getItem(THEME_KEY);
    return THEMES.find((one) => one === found) ?? "auto";
  } catch {
    return "auto";
  }
}

const theme = signal(storedTheme());
const wish = window.matchMedia("(prefers-color-scheme: dark)");
const wished = signal(wish.matches);
wish.addEventListener("change", (event) => (wished.value = event.matches));

effect(() => {
  const automatic = wished.value ? "dark" : "light";
  document.documentElement.dataset.theme = theme.value === "auto" ? automatic : theme.value;
  try {
    localStorage.setItem(THEME_KEY, theme.value);
  } catch {
    // The choice then lasts until the page is left.
  }
});

function nextTheme(): void {
  theme.value = THEMES[(THEMES.indexOf(theme.value) + 1) % THEMES.length] ?? "auto";
}

function Place({ view, label, count }: { view: string; label: string; count?: number }) {
  return (
    <a href={`#/${view}`} aria-current={route.value.view === view ? "page" : undefined}>
      {label}
      {count ? (
        <span class="badge">
          {count}
          <span class="unseen"> open</span>
        </span>
      ) : null}
    </a>
  );
}

function Header() {
  const makes = hosts.value.some((host) => may(host.name, "create"));
  return (
    <header class="top">
      <a class="skip" href="#main" onClick={(event) => {
        event.preventDefault();
        document.getElementById("main")?.focus();
      }}>
        Skip to the content
      </a>
      <span class="brand">Hypervisors</span>
      <nav aria-label="Places">
        <Place view="overview" label="Overview" />
        <Place view="issues" label="Issues" count={issuesNow.value.length} />
        <Place view="jobs" label="Jobs" />
        {makes ? <Place view="create" label="Create" /> : null}
      </nav>
      <span class="spring" />
      <span class={`link link-${connection.value}`} data-connection={connection.value}>
        <span class="state-dot" aria-hidden="true" />
        {connection.value === "live" ? "live" : connection.value === "connecting" ? "connecting" : "not live"}
      </span>
      <button type="button" class="plain" onClick={nextTheme} aria-label={`Colours: ${theme.value}. Change`}>
        {theme.value === "auto" ? "Auto" : theme.value === "light" ? "Light" : "Dark"}
      </button>
      <span class="who">{user.value.name || session.value?.user}</span>
      <button type="button" class="plain" onClick={() => void api.logout()}>
        Log out
      </button>
    </header>
  );
}

function NotLive() {
  if (connection.value !== "lost" || expired.value) return null;
  const wait = Math.max(0, Math.ceil((retryAt.value - now.value) / 1000));
  return (
    <div class="not-live" role="alert">
      <span>
        <b>Not live.</b> What you see is from {freshAt.value ? clock(new Date(freshAt.value).toISOString()) : "before"}.
      </span>
      <span class="hint" aria-live="off">
        {wait > 0 ? `Next attempt in ${duration(wait)}.` : "Trying…"}
      </span>
      <button type="button" onClick={retry}>
        Try now
      </button>
    </div>
  );
}

const Issues = lazy(() => import("./views/issues").then((module) => module.Issues));
const Jobs = lazy(() => import("./views/jobs").then((module) => module.Jobs));
const Create = lazy(() => import("./views/create").then((module) => module.Create));
const HostView = lazy(() => import("./views/host").then((module) => module.HostView));
const GuestView = lazy(() => import("./views/guest").then((module) => module.GuestView));

const TITLES: Record<string, string> = { issues: "Issues", jobs: "Jobs", create: "Create a guest" };

effect(() => {
  const { view, name } = route.value;
  const place = TITLES[view] ?? (view === "host" ? name : view === "guest" ? "Guest" : "Overview");
  document.title = `${place} – Hypervisors`;
});

function View() {
  const { view, name } = route.value;
  switch (view) {
    case "overview":
      return <Overview />;
    case "issues":
      return <Issues />;
    case "jobs":
      return <Jobs />;
    case "create":
      return <Create />;
    case "host":
      return <HostView key={name} name={name} />;
    case "guest":
      return <GuestView key={name} uuid={name} />;
    default:
      return <Empty>There is no such page.</Empty>;
  }
}

export function App() {
  if (session.value === null) return <Login />;
  return (
    <>
      <Header />
      <NotLive />
      <main id="main" tabIndex={-1} class={connection.value === "lost" ? "stale" : ""} aria-busy={!loaded.value}>
        <View />
      </main>
      <Questions />
      <Messages />
      {expired.value ? <LoginAgain /> : null}
    </>
  );
}
