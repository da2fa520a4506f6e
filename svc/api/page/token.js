// The token that this tab keeps until it is closed, for whatever changes something.

const TOKEN = "svc-token";

export function storedToken() {
  try {
    return sessionStorage.getItem(TOKEN) ?? "";
  } catch {
    return ""; // storage is switched off: the token is asked for each time
  }
}

export function storeToken(token) {
  try {
    if (token) sessionStorage.setItem(TOKEN, token);
    else sessionStorage.removeItem(TOKEN);
  } catch {
    // as above
  }
  document.dispatchEvent(new Event("token"));
}
