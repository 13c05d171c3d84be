"""Behaviour over time as a policy: its likelihood is a diffusion loss.

Environments are gymnasium's, algorithms are called as those of stable-baselines3. Both come with
``pip install 'neurodiff[control]'``.
"""

from neurodiff import _submodules


def without_extra(error: ModuleNotFoundError) -> ModuleNotFoundError:
    """What to say where gymnasium or stable-baselines3 is not installed.

    >>> without_extra(ModuleNotFoundError(name="stable_baselines3")).msg
    "stable_baselines3 is not installed, which a policy needs: pip install 'neurodiff[control]'"
    """
    name = (error.name or str(error)).split(".")[0]
    return ModuleNotFoundError(
        f"{name} is not installed, which a policy needs: pip install 'neurodiff[control]'",
        name=name,
    )


__getattr__ = _submodules(__name__)
