// The login page.
const problem = document.getElementById("problem");
const tell = (text) => {
  problem.textContent = text;
  problem.hidden = false;
};
const given = new URLSearchParams(location.search);
if (given.get("problem")) tell(given.get("problem").slice(0, 300));

function nextPage() {
  const next = given.get("next") || "/";
  return /^\/[A-Za-z0-9]?[\w./-]*$/.test(next) && !next.startsWith("//") ? next : "/";
}

document.getElementById("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = new FormData(event.target);
  const button = event.target.querySelector("button");
  button.disabled = true;
  try {
    const answer = await fetch("/api/v1/login", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ name: form.get("name"), password: form.get("password") }),
    });
    if (answer.ok) {
      location.href = nextPage();
      return;
    }
    const said = await answer.json();
    tell(answer.status === 401 ? "Name or password is wrong." : said.detail);
    document.getElementById("password").select();
  } catch {
    tell("The cloud does not answer. Try again in a moment.");
  } finally {
    button.disabled = false;
  }
});
