// Logging in: a page of its own at first, a dialog over what is shown when a login has expired.
import { useState } from "preact/hooks";
import * as api from "../data/api";
import { end, session } from "../data/session";
import { Field } from "../parts/basics";
import { Dialog } from "../parts/dialog";

function Form({ name }: { name: string }) {
  const [user, setUser] = useState(name);
  const [password, setPassword] = useState("");
  const [wrong, setWrong] = useState("");
  const [busy, setBusy] = useState(false);

  const submit = async () => {
    setBusy(true);
    setWrong("");
    try {
      await api.login(user, password);
    } catch (error) {
      setWrong(error instanceof Error ? error.message : String(error));
      setPassword("");
    } finally {
      setBusy(false);
    }
  };

  return (
    <form
      class="login-form"
      onSubmit={(event) => {
        event.preventDefault();
        void submit();
      }}
    >
      <Field id="login-user" label="User">
        <input
          id="login-user"
          name="username"
          autocomplete="username"
          autocapitalize="none"
          spellcheck={false}
          required
          value={user}
          onInput={(event) => setUser(event.currentTarget.value)}
        />
      </Field>
      <Field id="login-password" label="Password">
        <input
          id="login-password"
          name="password"
          type="password"
          autocomplete="current-password"
          required
          value={password}
          onInput={(event) => setPassword(event.currentTarget.value)}
        />
      </Field>
      <p class="wrong" role="alert">
        {wrong}
      </p>
      <button type="submit" class="primary" disabled={busy}>
        {busy ? "Logging in…" : "Log in"}
      </button>
    </form>
  );
}

export function Login() {
  return (
    <main class="login">
      <div class="login-box">
        <h1>Hypervisors</h1>
        <p class="hint">{window.location.hostname}</p>
        <Form name="" />
      </div>
    </main>
  );
}

export function LoginAgain() {
  return (
    <Dialog title="Log in again">
      <p>Your login has expired. What you were doing is still here.</p>
      <Form name={session.value?.user ?? ""} />
      <p class="aside">
        <button type="button" class="plain" onClick={end}>
          Leave instead
        </button>
      </p>
    </Dialog>
  );
}
