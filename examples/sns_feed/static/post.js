// How far a post has come into its followers' feeds, until it is in all of them.
const section = document.querySelector(".delivery");
const number = new Intl.NumberFormat("en");
const events = new EventSource(section.dataset.source);

events.addEventListener("progress", ({ data }) => {
  const { rows, answered, took } = JSON.parse(data);
  section.querySelector("progress").value = rows;
  section.querySelector("#rows").textContent = number.format(rows);
  if (answered && !("answered" in section.dataset)) location.reload();  // stored since: now the times can be compared
  if (took) section.querySelector("#last").textContent = `, the last after ${took}`;
});
events.addEventListener("done", () => events.close());
