"""The passes of one search through a Llama, written out for many short prompts.

What it does less of than the general forward: query, key and value are one product, with the norm before it and the
scale of the scores folded into the weights; a rotation is one complex product; the cache is one block per layer that
grows in place; attention is two batched products and a softmax (torch's fused CPU kernel is two to six times slower
with heads this small); after the last layer's keys and values only the last position of each prompt is computed;
residuals are added inside a product; on a CPU float32 weights lie in memory as the products read them.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel

from service.generation.backbone import Lora

PLAIN_ROPE = {"default", "linear", "llama3"}  # frequencies that do not depend on the length of the prompt


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """Weights of one block, [out, in] each; in q and k each head's halves are interleaved (see interleaved).

    attention_norm, mlp_norm: [hidden]. In float32 they are None: they are folded into the weights behind them, and with
    them the root of hidden, so that a norm only divides by its row's length; q holds the scores' 1 / sqrt(head size).
    """

    attention_norm: Tensor | None
    qkv: Tensor
    o: Tensor
    mlp_norm: Tensor | None
    gate_up: Tensor
    down: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Those that there are, always in one order."""
        held = (self.attention_norm, self.qkv, self.o, self.mlp_norm, self.gate_up, self.down)
        return tuple(tensor for tensor in held if tensor is not None)


@dataclass(frozen=True, slots=True, eq=False)
class Llama:
    """What the passes read: the blocks' weights, and embedding, positions and last norm where the decoder has them."""

    decoder: LlamaModel
    layers: tuple[Layer, ...]
    heads: int
    kv_heads: int
    size: int

    @property
    def scale(self) -> float:
        """What the scores are still to be multiplied with."""
        return 1.0 if self.layers[0].attention_norm is None else 1 / math.sqrt(self.size)

    @property
    def eps(self) -> float:
        return float(self.decoder.config.rms_norm_eps)


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """Keys and values of the tokens that all prompts of a model begin with: [layers, key heads, tokens, size] each."""

    keys: Tensor
    values: Tensor

    def __len__(self) -> int:
        return self.keys.shape[2]


@torch.no_grad()
def read_prefix(llama: Llama, tokens: Tensor) -> Prefix:
    """tokens: int64 [n], n at least 1."""
    passes = LlamaPasses(llama, 1, len(tokens))
    passes.prefill(tokens[None], torch.tensor([len(tokens)], device=tokens.device))
    return passes.held()


def pack(model: PreTrainedModel, lora: Lora | None = None) -> Llama | None:
    """The model's weights of now, `lora` merged in, rearranged; None for what this module does not compute.

    That is another architecture, biases, wrapped layers, positions that depend on the length of the prompt, an adapter
    of anything but the blocks.
    """
    if not is_plain_llama(model) or not isinstance(model, LlamaForCausalLM):
        return None
    blocks = [block for block in model.model.layers if type(block) is LlamaDecoderLayer]
    if len(blocks) < len(model.model.layers) or any(type(m) is not nn.Linear for b in blocks for m in linears(b)):
        return None  # for example LoRA that is not merged
    if lora is not None and not lora.pairs.keys() <= {id(linear.weight) for b in blocks for linear in linears(b)}:
        return None
    heads = model.config.num_attention_heads
    size = blocks[0].self_attn.q_proj.out_features // heads
    kv_heads = blocks[0].self_attn.k_proj.out_features // size
    with torch.no_grad():
        layers = tuple(_packed(block, heads, kv_heads, size, lora) for block in blocks)
    return Llama(model.model, layers, heads, kv_heads, size)


@torch.no_grad()
def owned(llama: Llama, model: PreTrainedModel) -> Llama:
    """The same weights in memory of their own; what is not packed is read from `model`."""
    assert isinstance(model, LlamaForCausalLM)  # noqa: S101  # or it would not have been packed
    layers = tuple(
        Layer(
            None if layer.attention_norm is None else layer.attention_norm.clone(),
            layer.qkv.clone(),
            layer.o.clone(),
            None if layer.mlp_norm is None else layer.mlp_norm.clone(),
            layer.gate_up.clone(),
            layer.down.clone(),
        )
        for layer in llama.layers
    )
    return replace(llama, decoder=model.model, layers=layers)


@torch.no_grad()
def pack_into(llama: Llama, model: PreTrainedModel) -> None:
    """Put the weights of `model`, of the shape that `llama` was packed from, where those of `llama` are."""
    assert isinstance(model, LlamaForCausalLM)  # noqa: S101  # or it would not have been packed
    for layer, block in zip(llama.layers, model.model.layers, strict=True):
        assert type(block) is LlamaDecoderLayer  # noqa: S101  # as above
        packed = _packed(block, llama.heads, llama.kv_heads, llama.size)
        for held, new in zip(layer.tensors, packed.tensors, strict=True):
            held.copy_(new)


def is_plain_llama(model: PreTrainedModel) -> bool:
    """SiLU, no biases, rotary frequencies that do not depend on the length of the prompt."""
    if type(model) is not LlamaForCausalLM:
        return False
    config = model.config
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    return config.hidden_act == "silu" and not (config.attention_bias or config.mlp_bias) and rope in PLAIN_ROPE


def interleaved(heads: int, size: int, device: torch.device) -> Tensor:
    """int64 [heads * size]: for each head row 0, row size / 2, row 1, row size / 2 + 1, .."""
    halves = torch.arange(size, device=device).view(2, -1).T.reshape(-1)
    return (torch.arange(heads, device=device)[:, None] * size + halves).view(-1)


def linears(block: LlamaDecoderLayer) -> tuple[nn.Module, ...]:
    """q, k, v, o, gate, up, down."""
    attention, mlp = block.self_attn, block.mlp
    return (
        *(attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj),
        *(mlp.gate_proj, mlp.up_proj, mlp.down_proj),
    )


def _packed(block: LlamaDecoderLayer, heads: int, kv_heads: int, size: int, lora: Lora | None = None) -> Layer:
    weights = (linear.weight for linear in linears(block) if isinstance(linear, nn.Linear))
    q, k, v, o, gate, up, down = weights if lora is None else map(lora.merged, weights)
    before, between = block.input_layernorm.weight, block.post_attention_layernorm.weight
    rows = interleaved(heads + kv_heads, size, q.device)
    if q.dtype is not torch.float32:  # another rounding of the weights would show
        return Layer(before, torch.cat([torch.cat([q, k])[rows], v]), o, between, torch.cat([gate, up]), down)
    qkv = torch.cat([torch.cat([q / math.sqrt(size), k])[rows], v])
    root = math.sqrt(before.shape[0])
    qkv, gate_up = qkv * (root * before), torch.cat([gate, up]) * (root * between)
    if q.device.type == "cpu":
        # MKL takes 1.2 to 1.7 times as long for the few rows of beams when the inputs of an output lie side by side.
        qkv, o, gate_up, down = (weight.T.contiguous().T for weight in (qkv, o, gate_up, down))
    return Layer(None, qkv, o, None, gate_up, down)


class LlamaPasses:
    """See Passes. capacity: positions that the cache holds for each prompt behind the prefix, beams included."""

    def __init__(self, llama: Llama, batch: int, capacity: int, prefix: Prefix | None = None) -> None:
        self._llama, self._decoder, self._layers = llama, llama.decoder, llama.layers
        self._eps = llama.eps
        self._rotated = (llama.heads + llama.kv_heads) * llama.size
        self.shared = 0 if prefix is None else len(prefix)
        weight = llama.layers[0].qkv
        shape = (len(llama.layers), batch, llama.kv_heads, self.shared + capacity, llama.size)
        keys = torch.empty(shape, dtype=weight.dtype, device=weight.device)
        values = torch.empty_like(keys)
        if prefix is not None:
            keys[:, :, :, : self.shared] = prefix.keys[:, None]
            values[:, :, :, : self.shared] = prefix.values[:, None]
        # Per layer, for writing and, with all prompts' heads in one dimension, for the products.
        self._keys, self._values = keys.unbind(), values.unbind()
        self._read = tuple(zip(keys.flatten(1, 2).unbind(), values.flatten(1, 2).unbind(), strict=True))
        self._least = torch.tensor(self._eps * weight.shape[1], dtype=torch.float32, device=weight.device)
        self._batch, self._filled = batch, self.shared

    def held(self) -> Prefix:
        """What the first prompt has put into the cache, beams included."""
        return Prefix(*(torch.stack(held)[:, 0, :, : self._filled] for held in (self._keys, self._values)))

    def prefill(self, prompts: Tensor, lengths: Tensor) -> Tensor:
        batch, longest = prompts.shape
        device = prompts.device
        end = self.shared + longest
        keys = torch.arange(end, device=device)
        place = keys[self.shared :]
        x = self._decoder.embed_tokens(prompts).view(batch * longest, -1)
        turn = self._turn(x, place[None])
        causal = _mask(keys <= place[:, None], x.dtype)
        *early, last = range(len(self._layers))
        for i in early:
            q = self._remember(i, x, turn)
            self._mix(i, x, self._attend(i, q, causal, end))
        q = self._remember(last, x, turn)
        ends = lengths - 1
        rows = torch.arange(batch, device=device)
        x = x[rows * longest + ends]
        prompt = _mask((keys < (self.shared + lengths)[:, None])[:, None, None], x.dtype)
        self._mix(last, x, self._attend(last, q[rows, :, ends].unsqueeze(2), prompt, end))
        self._filled = end
        return functional.rms_norm(x, x.shape[-1:], self._decoder.norm.weight, self._eps)

    def step(self, tokens: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        batch, count = tokens.shape
        x = self._decoder.embed_tokens(tokens).view(batch * count, -1)
        turn = self._turn(x, positions)
        mask = _mask(visible[:, None], x.dtype)
        for i in range(len(self._layers)):
            q = self._remember(i, x, turn)
            self._mix(i, x, self._attend(i, q, mask, self._filled + count))
        self._filled += count
        normed = functional.rms_norm(x, x.shape[-1:], self._decoder.norm.weight, self._eps)
        return normed.view(batch, count, -1)

    def _turn(self, x: Tensor, positions: Tensor) -> Tensor:
        """Complex [batch or 1, positions, 1, size / 2]."""
        cos, sin = self._decoder.rotary_emb(x.float(), positions)
        half = self._llama.size // 2
        return torch.complex(cos[..., None, :half], sin[..., None, :half])

    def _normed(self, x: Tensor, weight: Tensor | None) -> Tensor:
        if weight is not None:
            return functional.rms_norm(x, weight.shape, weight, self._eps)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        normed: Tensor = x * torch.addcmul(self._least, length, length).rsqrt_()  # the root of hidden is in the weights
        return normed

    def _remember(self, i: int, x: Tensor, turn: Tensor) -> Tensor:
        """Put the new positions' keys and values behind what the cache holds.

        Returns their queries, [batch, heads, positions, size].
        """
        layer, llama = self._layers[i], self._llama
        projected = functional.linear(self._normed(x, layer.attention_norm), layer.qkv)
        shape = (self._batch, len(x) // self._batch)
        pairs = (
            projected[:, : self._rotated]
            .float()
            .view(self._batch, -1, llama.heads + llama.kv_heads, llama.size // 2, 2)
        )
        turned = torch.view_as_real(torch.view_as_complex(pairs) * turn).flatten(-2).transpose(1, 2)
        values = projected[:, self._rotated :].view(*shape, llama.kv_heads, llama.size)
        self._keys[i].narrow(2, self._filled, shape[1]).copy_(turned[:, llama.heads :])
        self._values[i].narrow(2, self._filled, shape[1]).copy_(values.transpose(1, 2))
        q = turned[:, : llama.heads]
        return q if layer.attention_norm is None else q / math.sqrt(llama.size)

    def _attend(self, i: int, q: Tensor, mask: Tensor, end: int) -> Tensor:
        """[rows, heads * size]: what each query reads from the cache's first `end` positions.

        mask: 0 or -inf, [queries, end] or [batch, 1, queries, end].
        """
        llama, queries = self._llama, q.shape[2]
        # Heads that share keys stand under each other as rows of one product.
        grouped = q.to(mask.dtype).reshape(self._batch * llama.kv_heads, -1, llama.size)
        keys, values = (held.narrow(1, 0, end) for held in self._read[i])
        scores = torch.bmm(grouped, keys.transpose(1, 2))
        scores.view(self._batch, llama.heads, queries, end).add_(mask)
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype)
        mixed = torch.bmm(weights, values).view(self._batch, llama.heads, queries, llama.size)
        return mixed.transpose(1, 2).reshape(self._batch * queries, -1)

    def _mix(self, i: int, x: Tensor, attended: Tensor) -> None:
        """The rest of the block, added to x in place."""
        layer = self._layers[i]
        x.addmm_(attended, layer.o.T)
        normed = self._normed(x, layer.mlp_norm)
        gate, up = functional.linear(normed, layer.gate_up).chunk(2, dim=-1)
        x.addmm_(functional.silu(gate, inplace=True).mul_(up), layer.down.T)


def _mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, -torch.inf)
