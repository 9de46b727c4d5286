// Draws figure.chart[data-chart] with uPlot; the table of the same numbers is in the figure already.
(() => {
  "use strict";
  const plots = new Map();
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const font = "12px system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif";

  const translucent = (colour, share) => {
    const number = parseInt(colour.slice(1), 16);
    return `rgba(${number >> 16}, ${(number >> 8) & 255}, ${number & 255}, ${share})`;
  };
  const number = (_, value) => (value == null ? "–" : value.toFixed(4));
  const short = (value) => (value === 0 ? "0" : Math.abs(value) < 1e-3 ? value.toExponential(0) : String(+value.toPrecision(3)));

  const draw = (figure) => {
    const box = figure.querySelector(".plot");
    const chart = JSON.parse(figure.dataset.chart);
    const held = plots.get(figure);
    if (held) held.destroy();
    if (!chart.x.length || !box.clientWidth) {
      box.hidden = !chart.x.length;
      return;
    }
    const axis = { stroke: style("--dim"), font, labelFont: font, labelSize: 16, labelGap: 0, gap: 4, grid: { stroke: style("--line"), width: 1 }, ticks: { stroke: style("--line"), width: 1, size: 4 } };
    const whole = chart.x.every(Number.isInteger);
    const data = [chart.x];
    const series = [{ label: chart.xLabel, value: (_, value) => (value == null ? "–" : String(value)) }];
    const bands = [];
    for (const line of chart.lines) {
      const stroke = style(`--series-${line.colour}`);
      data.push(line.values);
      series.push({
        label: line.label, stroke, width: 2, dash: line.dashed ? [5, 4] : undefined, scale: line.right ? "right" : "y",
        value: number, spanGaps: true, points: { show: line.points || undefined, size: 6, fill: stroke },
      });
    }
    if (chart.band) {
      const colour = style(`--series-${chart.band.colour}`);
      const edge = { stroke: translucent(colour, 0.35), width: 1, points: { show: false }, value: number, spanGaps: true };
      data.push(chart.band.high, chart.band.low);
      series.push({ ...edge, label: `${chart.band.label}, high` }, { ...edge, label: "low" });
      bands.push({ series: [data.length - 2, data.length - 1], fill: translucent(colour, 0.14) });
    }
    const axes = [
      { ...axis, label: chart.xLabel, size: 26, incrs: whole ? [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 1e4, 1e5, 1e6] : undefined, values: (_, splits) => splits.map(short) },
      { ...axis, label: chart.yLabel || undefined, size: 48, values: (_, splits) => splits.map((value) => (value == null ? "" : short(value))) },
    ];
    const scales = { x: { time: false } };
    if (chart.lines.some((line) => line.right)) {
      axes.push({ ...axis, scale: "right", side: 1, grid: { show: false }, size: 56, label: chart.rightLabel || undefined, values: (_, splits) => splits.map((value) => (value == null ? "" : short(value))) });
    }
    if (chart.x.length === 1) scales.x.range = [chart.x[0] - 1, chart.x[0] + 1];
    // Away from the chart the legend tells the last values.
    const tellLast = (plot) => plot.setLegend({ idx: chart.x.length - 1 }, false);
    const colours = series.map((one) => one.stroke);
    const options = { width: box.clientWidth, height: 260, series, axes, scales, bands, padding: [12, 8, 0, 0], legend: { live: true, markers: { width: 0, fill: (_, place) => colours[place] || "transparent" } },
      cursor: { drag: { x: false, y: false } },
      hooks: { ready: [tellLast], setCursor: [(plot) => plot.cursor.idx == null && tellLast(plot)] },
    };
    plots.set(figure, new uPlot(options, data, box));
  };
  const all = (root) => root.querySelectorAll("figure.chart[data-chart]");
  const width = new ResizeObserver((entries) => {
    for (const { target, contentRect } of entries) {
      const figure = target.closest("figure");
      const plot = plots.get(figure);
      if (!plot) draw(figure);
      else if (contentRect.width && contentRect.width !== plot.width) plot.setSize({ width: contentRect.width, height: 260 });
    }
  });
  const begin = (root) => {
    for (const figure of all(root)) {
      figure.querySelector(".plot").classList.add("drawn");
      draw(figure);
      width.observe(figure.querySelector(".plot"));
    }
  };
  begin(document);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => all(document).forEach(draw));
  document.body.addEventListener("htmx:afterSwap", (event) => {
    for (const [figure, plot] of plots) if (!figure.isConnected) { plot.destroy(); plots.delete(figure); }
    begin(event.detail.target);
  });
})();
