// Grades the quizzes of a page where they stand; no server, nothing is stored. The forms come from tools/course_quiz.py.
document.addEventListener("DOMContentLoaded", () => {
  for (const quizzes of document.querySelectorAll(".quizzes")) {
    const forms = [...quizzes.querySelectorAll("form.quiz")];
    const total = quizzes.querySelector(".quiz-total");
    for (const form of forms)
      form.addEventListener("submit", (event) => {
        event.preventDefault();
        const said = form.querySelector(".quiz-said");
        const chosen = form.querySelector("input:checked");
        if (!chosen) {
          said.textContent = "Choose an answer first.";
          return;
        }
        const right = "right" in chosen.dataset;
        form.dataset.state = right ? "right" : "wrong";
        said.innerHTML = (right ? "<strong>Right.</strong> " : "<strong>Not so.</strong> ") + chosen.parentElement.querySelector(".quiz-why").innerHTML;
        const checked = forms.filter((f) => f.dataset.state).length;
        const correct = forms.filter((f) => f.dataset.state === "right").length;
        if (checked === forms.length) total.textContent = `${correct} of ${forms.length} right.`;
      });
  }
});
