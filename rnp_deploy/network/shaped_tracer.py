"""A torch.fx tracer that knows every shape but the batch's, and leaves alone what it cannot follow."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

__all__ = ["ShapedTracer"]


class _ShapedProxy(fx.Proxy):
    """A traced value that answers questions about its shape with numbers, N alone excepted.

    ``if x.shape[2] > 7``, ``x.view(n, groups, c // groups, h, w)`` or padding worked out from
    H and W are thus traced, and leave plain numbers in the graph.
    """

    @property
    def shape(self) -> Any:
        sizes = self._of_tensor("shape")
        batched = isinstance(sizes, torch.Size) and self.node.meta["batched"]
        return (_batch_size(self), *sizes[1:]) if batched else sizes

    @property
    def ndim(self) -> Any:
        return self._of_tensor("ndim")

    @property
    def dtype(self) -> Any:
        return self._of_tensor("dtype")

    def dim(self) -> Any:
        return self.ndim

    def size(self, dim: int | None = None) -> Any:
        sizes = self.shape
        return sizes if dim is None else sizes[dim]

    def _of_tensor(self, name: str) -> Any:
        value = self.node.meta.get("fake")
        known = isinstance(value, Tensor) and value.ndim
        return getattr(value, name) if known else fx.proxy.Attribute(self, name)


def _batch_size(proxy: fx.Proxy) -> fx.Proxy:
    return proxy.tracer.create_proxy("call_method", "size", (proxy, 0), {})


class ShapedTracer(fx.Tracer):
    """Traces with fake tensors at hand.

    A module whose ``forward`` cannot be traced is kept as one opaque call.

    Args:
        images: Example batch ``[N, C, H, W]``.

    Attributes:
        opaque: Path of each module kept whole → why.
    """

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.opaque: dict[str, str] = {}
        self._computing = False
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._images = self._mode.from_tensor(images)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Wrap a node."""
        return _ShapedProxy(node, self)

    def create_proxy(self, *args: Any, **kwargs: Any) -> Any:
        """Record an operation and work out the shape of what it makes."""
        proxy = super().create_proxy(*args, **kwargs)
        node = proxy.node
        self._computing = True  # fx has replaced nn.Module's call and attribute access by recording ones
        try:
            node.meta["fake"] = self._value(node)
        except Exception:  # noqa: BLE001 - no shape is known, and tracing goes on without
            return proxy
        finally:
            self._computing = False
        sources = node.all_input_nodes
        node.meta["batched"] = node.op == "placeholder" or any(s.meta.get("batched") for s in sources)
        return proxy

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Trace into a module, or past it."""
        if self._computing:
            return forward(*args, **kwargs)
        last = next(reversed(self.graph.nodes), None)
        scope, stack = copy.copy(self.scope), self.module_stack.copy()
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as err:  # noqa: BLE001 - whatever a foreign forward() may raise
            self.scope, self.module_stack = scope, stack  # fx leaves them as they were deep inside
            path = self.path_of_module(m)
            for node in reversed(self.graph.nodes):
                if node is last:
                    break
                self.graph.erase_node(node)
            self.opaque[path] = " ".join(str(err).split())
            return self.create_proxy("call_module", path, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Record the use of a parameter, unless it is read to work out a shape."""
        if self._computing:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def _value(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self._images
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.root)
        args = fx.node.map_arg(node.args, self._known)
        kwargs = fx.node.map_arg(node.kwargs, self._known)
        with self._mode, torch.no_grad():
            if node.op == "call_module":
                return self.root.get_submodule(str(node.target))(*args, **kwargs)
            if node.op == "call_method":
                receiver, *others = args
                return getattr(receiver, str(node.target))(*others, **kwargs)
            return node.target(*args, **kwargs)  # type: ignore[operator]

    def _known(self, source: fx.Node) -> Any:
        # fx records the buffers among an operation's arguments by a way of its own.
        return self._value(source) if source.op == "get_attr" else source.meta["fake"]
