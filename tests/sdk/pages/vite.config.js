// Builds the pages of the tests: node_modules/.bin/vite build tests/sdk/pages --outDir …

import { resolve } from "node:path";

const page = (name) => resolve(import.meta.dirname, name);

export default {
  logLevel: "warn",
  publicDir: false,
  build: {
    minify: false,
    emptyOutDir: true,
    chunkSizeWarningLimit: 10_000,
    rolldownOptions: { input: [page("client.html"), page("react.html")] },
  },
};
