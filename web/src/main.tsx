// The page begins here.
import { render } from "preact";
import { App } from "./app";
import { watch } from "./data/activity";
import { keep } from "./data/store";
import { follow } from "./route";

follow();
keep();
watch();
const page = document.getElementById("page");
if (page) render(<App />, page);
