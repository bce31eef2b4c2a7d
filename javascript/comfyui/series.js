// What a curve needs before it is drawn: ranges, ticks, thinning. Pure functions; a point is [x, y, ...].

/** The points that matter on a plot so wide: in each column the first, the lowest, the highest and the last. */
export function thinned(points, columns, y = 1) {
  const given = points.filter((point) => point[y] !== null && Number.isFinite(point[y]));
  if (given.length <= columns * 4) return given;
  const first = given[0][0];
  const width = (given[given.length - 1][0] - first) / columns || 1;
  const kept = [];
  let column = [];
  let number = 0;
  const close = () => {
    if (!column.length) return;
    let low = 0;
    let high = 0;
    column.forEach((point, i) => {
      if (point[y] < column[low][y]) low = i;
      if (point[y] > column[high][y]) high = i;
    });
    const chosen = [...new Set([0, low, high, column.length - 1])].sort((a, b) => a - b);
    kept.push(...chosen.map((i) => column[i]));
  };
  for (const point of given) {
    const at = Math.min(columns - 1, Math.floor((point[0] - first) / width));
    if (at !== number) {
      close();
      column = [];
      number = at;
    }
    column.push(point);
  }
  close();
  return kept;
}

/** The value below which a share of the sorted `values` lies. */
function quantile(values, share) {
  return values[Math.min(values.length - 1, Math.max(0, Math.round(share * (values.length - 1))))];
}

/** The range of losses to show: all of the smoothed line, and of single steps all but the wildest hundredth. */
export function lossRange(points) {
  const single = points.map((point) => point[1]).filter(Number.isFinite).sort((a, b) => a - b);
  const smooth = points.map((point) => point[2]).filter((value) => value !== null && Number.isFinite(value));
  if (!single.length && !smooth.length) return [0, 1];
  let low = single.length ? quantile(single, 0.01) : Infinity;
  let high = single.length ? quantile(single, 0.99) : -Infinity;
  for (const value of smooth) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (low >= 0 && low < 0.4 * high) low = 0; // a loss has a natural zero, and it costs little here
  if (high - low < 1e-12) return [low - Math.abs(low) / 2 - 1e-6, high + Math.abs(high) / 2 + 1e-6];
  const margin = (high - low) * 0.05;
  return [low === 0 ? 0 : low - margin, high + margin];
}

/**
 * Where the steps axis ends: it doubles as the run goes on, so that neither the first steps are a blot at the left nor
 * the axis moves at each step. At most the end of the run.
 */
export function stepWindow(first, last, end) {
  let span = 32;
  while (first + span < last) span *= 2;
  const wanted = first + span;
  return Number.isFinite(end) && end > first ? Math.min(Math.max(end, last), wanted) : wanted;
}

/** At most `most` + 1 round numbers within [low, high]. */
export function ticks(low, high, most = 4) {
  if (!(high > low)) return [];
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough * (1 - 1e-9));
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) {
    found.push(Number((i * step).toPrecision(12)));
  }
  return found;
}

/** Round numbers for a count of steps: as `ticks`, and whole. */
export function stepTicks(low, high, most = 4) {
  return ticks(low, high, most).filter(Number.isInteger);
}

/** Powers of ten within [low, high], low > 0. */
export function decades(low, high) {
  const found = [];
  for (let i = Math.ceil(Math.log10(low) - 1e-9); 10 ** i <= high * (1 + 1e-9); i += 1) found.push(Number(`1e${i}`));
  return found;
}

/** The index of the point whose x is nearest; -1 where there is none. Points are sorted by x. */
export function nearest(points, x) {
  if (!points.length) return -1;
  let low = 0;
  let high = points.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < x) low = middle + 1;
    else high = middle;
  }
  return low > 0 && x - points[low - 1][0] < points[low][0] - x ? low - 1 : low;
}

/** y at x on the line through the points, or null outside of them. */
export function interpolated(points, x) {
  if (!points.length || x < points[0][0] || x > points[points.length - 1][0]) return null;
  let low = 0;
  let high = points.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle][0] <= x) low = middle;
    else high = middle;
  }
  const [x0, y0] = points[low];
  const [x1, y1] = points[high];
  return x1 === x0 || x === x0 ? y0 : y0 + ((y1 - y0) * (x - x0)) / (x1 - x0);
}

/** The line through the points between two x, with both ends on the line. */
export function clipped(points, from, to) {
  if (!points.length) return [];
  const low = Math.max(from, points[0][0]);
  const high = Math.min(to, points[points.length - 1][0]);
  if (low >= high) return [];
  const inside = points.filter(([x]) => x > low && x < high);
  return [[low, interpolated(points, low)], ...inside, [high, interpolated(points, high)]];
}
