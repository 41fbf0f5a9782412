"""The CSS of report.html: one column, tables that scroll by themselves, light and dark."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --text: #1b1f24; --soft: #545d68; --line: #d4d9df; --card: #f4f6f8;
  --link: #0b57a4;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171b; --text: #e4e8ec; --soft: #a3adb8; --line: #3a424b; --card: #1f242a;
    --link: #7db8f5;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 1.25rem 1rem 4rem; max-width: 54rem; background: var(--page);
  color: var(--text); font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: anywhere;
}
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .75rem; }
h2 { font-size: 1.25rem; margin: 2.75rem 0 .5rem; padding-top: .75rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.75rem 0 .5rem; }
a { color: var(--link); }
p { margin: .5rem 0; max-width: 42rem; }
.soft, figcaption, dt, .note { color: var(--soft); font-size: .92rem; }
dl { display: grid; grid-template-columns: minmax(5rem, auto) 1fr; gap: .2rem 1rem; margin: 0; }
dd { margin: 0; }
@media (max-width: 36rem) {
  dl { display: block; }
  dd { margin-bottom: .45rem; }
}
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .6rem;
  margin: 1.25rem 0; padding: 0; list-style: none; }
.tiles li { background: var(--card); border-radius: .5rem; padding: .65rem .8rem; }
.tiles b { display: block; font-size: 1.5rem; line-height: 1.2; }
.tiles span { display: block; font-size: .85rem; line-height: 1.35; }
nav ol { margin: .25rem 0; padding-left: 1.4rem; columns: 20rem; }
nav li { padding: .2rem 0; break-inside: avoid; }
.scroll { overflow-x: auto; margin: .75rem 0; border: 1px solid var(--line); border-radius: .4rem; }
.scroll:focus-visible { outline: 2px solid var(--link); }
table { border-collapse: collapse; font-size: .9rem; width: max-content; min-width: 100%;
  overflow-wrap: normal; }
th, td { padding: .35rem .65rem; text-align: left; vertical-align: top;
  max-width: 22rem; }
td { border-top: 1px solid var(--line); }
th { background: var(--card); font-weight: 600; vertical-align: bottom;
  min-width: 4rem; max-width: 9rem; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
td.n, td.s { white-space: nowrap; }
th:first-child, td:first-child { position: sticky; left: 0; max-width: 45vw; }
td:first-child { background: var(--page); }
figure { margin: 1.25rem 0; }
figure img { display: block; width: 100%; height: auto; max-width: 44rem; background: #fff;
  border: 1px solid var(--line); border-radius: .4rem; padding: .4rem; }
figcaption { margin-top: .4rem; max-width: 42rem; }
summary { cursor: pointer; padding: .4rem 0; font-weight: 600; }
details { margin: .4rem 0; }
@media print { details > * { display: block; } .scroll { overflow: visible; } }
""".strip()
