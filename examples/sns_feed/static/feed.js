// New posts appear at the top by themselves. Each event is a piece of the page, as the server renders it.
const feed = document.querySelector(".feed");
const live = document.querySelector(".live");
const events = new EventSource(feed.dataset.source);

events.addEventListener("open", () => { live.hidden = false; });
events.addEventListener("error", () => { live.hidden = true; });  // the browser connects again, after the last id it saw
events.addEventListener("post", ({ data }) => {
  const template = document.createElement("template");
  template.innerHTML = data;
  const post = template.content.querySelector("article");
  if (document.getElementById(post.id)) return;
  post.classList.add("new");
  feed.prepend(post);
  feed.querySelectorAll(".post:nth-of-type(n + 201)").forEach((old) => old.remove());
});
