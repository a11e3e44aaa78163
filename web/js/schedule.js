// Noise levels, switch and stages of a run, for pictures on nodes: the numbers of wan/schedule.py,
// wan/switch.py and wan/experts.py, which a test compares. ComfyUI never runs what is computed here.

const TRAIN_TIMESTEPS = 1000
const OFFICIAL_SIGMA_MAX = Math.fround(1 - 1 / TRAIN_TIMESTEPS)
const BOUNDARY_TOLERANCE = 1e-6
const ABOVE_ALL = 2
export const OWN_BOUNDARY = 0.875 // What auto takes for a MODEL made from text.

const shifted = (u, shift) => (shift * u) / (1 + (shift - 1) * u)

function grid(top, steps, shift, asTimestep) {
  const levels = Array.from({ length: steps }, (_, i) => shifted(i * (-top / steps) + top, shift))
  return { sigmas: [...levels, 0].map(Math.fround), timesteps: levels.map((level) => asTimestep(TRAIN_TIMESTEPS * level)) }
}

function listed(timesteps) {
  const given = timesteps.at(-1) === 0 ? timesteps.slice(0, -1) : timesteps
  const falls = given.every((t, i) => t >= 0 && t <= TRAIN_TIMESTEPS && (i === 0 || t < given[i - 1]))
  if (!given.length || !falls) throw new Error("list")
  return { sigmas: [...given.map((t) => t / TRAIN_TIMESTEPS), 0].map(Math.fround), timesteps: given }
}

function parsed(text) {
  const numbers = text.split(/[\s,;()[\]]+/).filter(Boolean).map(Number)
  if (numbers.some(Number.isNaN)) throw new Error("list")
  return Math.max(...numbers) <= 1 ? numbers.map((number) => TRAIN_TIMESTEPS * number) : numbers
}

function only(count, steps) {
  if (steps !== count) throw new Error("steps")
}

const GRIDS = {
  unipc: ({ steps, shift }) => grid(OFFICIAL_SIGMA_MAX, steps, shift, Math.trunc),
  "dpm++": ({ steps, shift }) => grid(1, steps, shift, Math.trunc),
  shifted: ({ steps, shift }) => grid(1, steps, shift, Number),
  lightning: ({ steps, shift }) => (only(4, steps), grid(1, steps, shift, Number)),
  lcm: ({ steps }) => (only(3, steps), listed([1000, 757, 522])),
  list: ({ timesteps }) => listed(parsed(timesteps)),
}

// {sigmas: N+1 levels, timesteps: N}. Throws an Error named "unknown" (a schedule of ComfyUI's own),
// "steps" or "list" where the numbers do not make one.
export function makeSchedule(given) {
  if (!Object.hasOwn(GRIDS, given.scheduler)) throw new Error("unknown")
  return GRIDS[given.scheduler](given)
}

function boundaryAtStep({ timesteps }, step) {
  if (step < 0 || step > timesteps.length) throw new Error("switch")
  if (step === 0) return ABOVE_ALL
  if (step === timesteps.length) return 0
  const [above, below] = timesteps.slice(step - 1, step + 1).map((t) => t / TRAIN_TIMESTEPS)
  if (above - below <= 2 * BOUNDARY_TOLERANCE) throw new Error("switch")
  return (above + below) / 2
}

// The lowest noise level of the high-noise expert; throws "switch" for a step that is none.
export function boundaryOf(schedule, { kind, boundary, step, value }) {
  const ways = {
    auto: () => OWN_BOUNDARY,
    boundary: () => boundary,
    step: () => boundaryAtStep(schedule, step),
    snr: () => 1 / (1 + Math.sqrt(value)),
    timestep: () => value / TRAIN_TIMESTEPS,
    fraction: () => boundaryAtStep(schedule, Math.floor(value * schedule.timesteps.length + 0.5)),
  }
  return ways[kind]()
}

// Index of the stage of each step; `boundaries` end at 0, one for each stage. Throws "order" if they rise.
export function stagesOf({ timesteps }, boundaries) {
  if (boundaries.some((boundary, i) => i && boundary > boundaries[i - 1])) throw new Error("order")
  return timesteps.map((t) => boundaries.findIndex((b) => t / TRAIN_TIMESTEPS >= b - BOUNDARY_TOLERANCE))
}
