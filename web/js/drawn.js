// Adds what is only shown on a node: neither in the saved workflow nor in what is run.

export function addDrawn(node, name, element, options) {
  const widget = node.addDOMWidget(name, `wan_${name}`, element, { ...options, serialize: false })
  widget.serialize = false
  const own = node.onSerialize
  node.onSerialize = function (saved) {
    own?.apply(this, arguments)
    // Values are saved by place: those behind (ComfyUI's own words of a run) would fall into later widgets.
    saved.widgets_values?.splice(this.widgets.indexOf(widget))
  }
}
