//! A web page for a failing design: what it is about, the picture, the sentence, and how to see it again. It needs nothing but itself.

use super::Timeline;
use super::svg::{draw, escape};

/// What a page tells.
#[derive(Debug, Clone, Copy)]
pub struct Page<'a> {
    /// The scenario's name.
    pub scenario: &'a str,
    /// What it is about.
    pub about: &'a str,
    /// Where it comes from.
    pub source: &'a str,
    /// The design's name.
    pub design: &'a str,
    /// How it works.
    pub works: &'a str,
    /// The command that tells it again.
    pub command: &'a str,
    /// What happened.
    pub timeline: &'a Timeline,
}

const STYLE: &str = "\
:root { color-scheme: light dark; --ink: #1c2024; --dim: #60646c; --paper: #fcfcfd; --box: #f0f0f3; --edge: #cdced6; --event: #e6f4fe;
  --event-edge: #5eb1ef; --held: #ad5700; --bad: #ce2c31; --bad-box: #feebec; }
@media (prefers-color-scheme: dark) { :root { --ink: #edeef0; --dim: #b0b4ba; --paper: #111113; --box: #212225; --edge: #43484e;
  --event: #0d2847; --event-edge: #2870bd; --held: #ffca16; --bad: #ff9592; --bad-box: #3b1219; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto; padding: 0 1rem; max-width: 80rem; }
h1 { font-size: 1.5rem; } h1 small { color: var(--dim); font-weight: normal; } p { max-width: 46rem; }
.verdict { border-left: 4px solid var(--bad); background: var(--bad-box); padding: .6rem 1rem; }
.verdict b { color: var(--bad); } .legend, .source { color: var(--dim); font-size: .9rem; }
.picture { overflow-x: auto; } code { background: var(--box); padding: .15rem .4rem; border-radius: 4px; }
table { border-collapse: collapse; } td, th { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--edge); }
a { color: inherit; }
svg { font: 13px system-ui, sans-serif; } svg text { fill: var(--ink); } svg .thread { font-weight: 600; font-size: 15px; }
svg .number { fill: var(--dim); text-anchor: end; font-size: 11px; } svg .life { stroke: var(--edge); stroke-dasharray: 2 4; }
svg rect { fill: var(--box); stroke: var(--edge); } svg .event rect { fill: var(--event); stroke: var(--event-edge); }
svg .lock rect { fill: var(--paper); } svg .gap rect { fill: var(--paper); stroke: none; } svg .gap text { fill: var(--dim); font-style: italic; }
svg .stuck rect, svg .decides rect { fill: var(--bad-box); stroke: var(--bad); stroke-width: 2; }
svg .held { fill: var(--held); stroke: none; opacity: .55; } svg .held.open { fill: var(--bad); opacity: .8; }
svg .waits { stroke: var(--bad); stroke-width: 2; stroke-dasharray: 6 4; } svg .tip { fill: var(--bad); }
";

impl Page<'_> {
    /// The page.
    pub fn html(&self) -> String {
        let title = format!("{} / {}", self.scenario, self.design);
        let finding = self.timeline.finding.as_ref();
        let verdict = finding.map_or_else(String::new, |finding| {
            format!(
                "<p class=\"verdict\"><b>{}:</b> {}</p>\n",
                escape(&capital(finding.verdict.words())),
                sentence(&finding.sentence)
            )
        });
        let body = format!(
            "<h1>{} <small>{}</small></h1>\n<p>{}</p>\n<p><b>The design that was proposed:</b> {}</p>\n<p><b>What goes wrong:</b> {}, as \
             in this schedule of its threads, which the checker found.</p>\n<div class=\"picture\">\n{}</div>\n{verdict}<p \
             class=\"legend\">{}</p>\n<p class=\"legend\">See it again: <code>{}</code></p>\n<p class=\"legend\">Where the argument \
             comes from, and which promises it is about: {}</p>\n",
            escape(self.scenario),
            escape(self.design),
            escape(self.about),
            escape(self.works),
            escape(finding.map_or("nothing", |finding| finding.verdict.words())),
            draw(self.timeline),
            legend(self.timeline),
            escape(self.command),
            escape(self.source),
        );
        document(&title, &body)
    }
}

/// Text with a capital letter at its beginning.
fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// A checker's sentence as a page has it: names of locks, which it has in backticks, are set off.
fn sentence(text: &str) -> String {
    let text = capital(text.trim());
    let end = if text.ends_with('.') { "" } else { "." };
    let parts = text.split('`').map(escape).enumerate();
    let parts = parts.map(|(index, part)| {
        if index % 2 == 1 {
            format!("<code>{part}</code>")
        } else {
            part
        }
    });
    parts.collect::<String>() + end
}

fn legend(timeline: &Timeline) -> String {
    let mut parts = vec!["One column per thread; time runs down, one step at a time."];
    if timeline.threads.iter().any(|name| name == "story") {
        parts.push("The thread \u{201c}story\u{201d} sets the scene and looks at the end of it.");
    }
    if !timeline.held.is_empty() {
        parts.push("A bar at a column's left shows how long the thread holds a lock; a red one is never left.");
    }
    if timeline
        .waits
        .iter()
        .any(|wait| wait.holder.is_some_and(|holder| holder != wait.thread))
    {
        parts.push("An arrow leads from a thread that waits for ever to the one that has what it waits for.");
    }
    parts.push("Red is where it goes wrong.");
    parts.join(" ")
}

/// A page that leads to others: for each a file name, the scenario, the design and the verdict.
pub fn index(pages: &[(String, &str, &str, &str)]) -> String {
    let rows: String = pages
        .iter()
        .map(|(file, scenario, design, verdict)| {
            format!(
                "<tr><td>{}</td><td><a href=\"{}\">{}</a></td><td>{}</td></tr>\n",
                escape(scenario),
                escape(file),
                escape(design),
                escape(verdict)
            )
        })
        .collect();
    let body = format!(
        "<h1>isomem check <small>designs that fail, and how</small></h1>\n<p>Each of these was proposed once. The checker found a \
         schedule of its threads that breaks it; the design that ships stands the same test.</p>\n<table><tr><th>Scenario</th>\
         <th>Design</th><th>What goes wrong</th></tr>\n{rows}</table>\n"
    );
    document("isomem check", &body)
}

fn document(title: &str, body: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n",
        escape(title)
    )
}
