// The server's API: its model, and answers as they come.

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// -> the name of the model that is served. Throws ApiError.
export async function servedModel(key) {
  const response = await send("v1/models", key);
  return (await response.json()).data[0].id;
}

// Yields the chunks of an answer; the last one has `sgl`, how it came about. Throws ApiError, and AbortError.
export async function* chat(request, key, signal) {
  const response = await send("v1/chat/completions", key, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...request, stream: true }),
    signal,
  });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(response.status, chunk.error.message);
    yield chunk;
  }
  throw new ApiError(0, "the server went away before the answer was complete; ask again");
}

// kind: image_url or video_url.
export const contentPart = (kind, url) => ({ type: kind, [kind]: { url } });

// The messages of a conversation. media: content parts, which come first. turns: {question, answer}, asked before.
export function messages(media, turns, question) {
  const said = turns.flatMap((turn) => [
    { role: "user", content: turn.question },
    { role: "assistant", content: turn.answer },
  ]);
  const all = [...said, { role: "user", content: question }];
  if (media.length) all[0] = { role: "user", content: [...media, { type: "text", text: all[0].content }] };
  return all;
}

async function send(path, key, options = {}) {
  const headers = key ? { ...options.headers, Authorization: `Bearer ${key}` } : options.headers;
  const response = await fetch(path, { ...options, headers }).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "the server does not answer; see whether it runs, and how large a request it takes");
  });
  if (!response.ok) throw new ApiError(response.status, await errorText(response));
  return response;
}

async function errorText(response) {
  const content = await response.json().catch(() => null);
  return content?.error?.message ?? `the server answered ${response.status} ${response.statusText}`;
}

// The data of server-sent events, each on one line.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) yield part.replace(/^data: /, "");
  }
}
