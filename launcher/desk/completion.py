"""`moe-zoo completion bash|zsh`: what a shell completes: commands, options, variables, values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from launcher import ROOT
from launcher.config.arguments import quote
from launcher.config.settings import FIELDS
from launcher.errors import UsageError, did_you_mean
from launcher.plan import flags

SHELLS = ("bash", "zsh")
WORDS = {
    "list": ("models", "clusters", "recipes", "runs"),
    "completion": SHELLS,
    "report": ("diff",),
}
_BASH = """\
# Completion of moe-zoo for Bash: eval "$(moe-zoo completion bash)"
_moe_zoo() {{
  local word=${{COMP_LINE:0:COMP_POINT}} command=
  word=${{word##*[[:space:]]}}
  local -r zoo={zoo} megatron={megatron}
  local each
  for each in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    case $each in
    {commands_pattern}) command=$each && break ;;
    esac
  done
  local found=
  case $word in
  MODEL=*)
    found=$(cd "$zoo/model_configs/benchmarking" && printf '%s\\n' *.yaml)
    found=${{found//.yaml/}}
    ;;
  CLUSTER=*)
    found=$(cd "$zoo/cluster_configs/benchmarking" && printf '%s\\n' *.conf)
    found=${{found//.conf/}}
    ;;
{values}
  *=*) compopt -o default; return ;;
  [A-Z]*) found={variables} && compopt -o nospace ;;
  *)
    case $command in
    '') found={commands} ;;
{options}
    esac
    ;;
  esac
  # Bash takes the part before a = for a word of its own.
  mapfile -t COMPREPLY < <(compgen -W "$found" -- "${{word#*=}}")
  if [[ -n $command && ${{#COMPREPLY[@]}} == 0 ]]; then compopt -o default; fi
}}
complete -F _moe_zoo moe-zoo
"""
_ZSH = """\
#compdef moe-zoo
# Completion of moe-zoo for Zsh: eval "$(moe-zoo completion zsh)"
_moe_zoo() {{
  local word=${{words[CURRENT]}} command= each
  local -r zoo={zoo}
  local -a found megatron
  megatron={megatron}
  for each in ${{words[2,CURRENT-1]}}; do
    case $each in
    {commands_pattern}) command=$each; break ;;
    esac
  done
  case $word in
  MODEL=*) found=($zoo/model_configs/benchmarking/*.yaml(:t:r)) ;;
  CLUSTER=*) found=($zoo/cluster_configs/benchmarking/*.conf(:t:r)) ;;
{values}
  *=*) compset -P '*='; _files; return ;;
  [A-Z]*) compadd -S '' -- {variables_plain}; return ;;
  *)
    case $command in
    '') found=({commands_plain}) ;;
{options}
    esac
    ;;
  esac
  compset -P '*='
  compadd -- $found || {{ [[ -n $command ]] && _files }}
}}
compdef _moe_zoo moe-zoo
"""


def completion(words: Sequence[str], usages: Mapping[str, str]) -> int:
    """Print the script for a shell; `usages` has a text that names each command's options."""
    if len(words) != 1 or words[0] not in SHELLS:
        hint = did_you_mean(words[0], SHELLS) if words else ""
        raise UsageError(f"moe-zoo completion {' or '.join(SHELLS)}: name one shell.{hint}")
    print(script(words[0], usages), end="")
    return 0


def script(shell: str, usages: Mapping[str, str]) -> str:
    """Return the completion script of a shell."""
    zsh = shell == "zsh"

    def listed(values: Sequence[str]) -> str:
        return f"({' '.join(map(quote, values))})" if zsh else quote(" ".join(values))

    variables = [
        f"{name}=" for name, one in FIELDS.items() if "launcher" not in one.metadata["group"]
    ]
    choices = {
        name: one.metadata["kind"].allowed.split(", ")
        for name, one in FIELDS.items()
        if re.fullmatch(r"[\w.]+(, [\w.]+)+", one.metadata["kind"].allowed)
    }
    values = [f"  {name}=*) found={listed(given)} ;;" for name, given in choices.items()]
    options = []
    for name, usage in usages.items():
        own = " ".join(map(quote, [*WORDS.get(name, ()), *_options(usage)]))
        own += " $megatron" if "--megatron-flag" in usage else ""
        options.append(f"    {name}) found={f'({own})' if zsh else _double(own)} ;;")
    text = _ZSH if zsh else _BASH
    return text.format(
        zoo=quote(str(ROOT)),
        megatron=listed(sorted(flags.load(flags.SUPPORTED[-2]).entries)),
        commands_pattern=" | ".join(usages),
        commands=listed(list(usages)),
        commands_plain=" ".join(usages),
        values="\n".join(values),
        variables=listed(variables),
        variables_plain=" ".join(variables),
        options="\n".join(options),
    )


def _options(usage: str) -> list[str]:
    """Return the options that a command's usage names."""
    named = re.findall(r"(?<![\w-])--?[a-z][a-z-]*", usage)
    return ["--help", *dict.fromkeys(name for name in named if name != "--megatron-flag")]


def _double(words: str) -> str:
    return f'"{words}"'
